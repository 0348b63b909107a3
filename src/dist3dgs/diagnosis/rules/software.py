"""Rules for the program, its environment and its build."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from .rule import SIGNAL_TALK, Hit, Rule, Tier, patterns, signal_exits

#: Exceptions that only report that another process failed, or that a signal came.
REPORTS = (
    r"ChildFailedError|CalledProcessError|ProcessRaisedException|ProcessExitedException|SignalException|SystemExit|KeyboardInterrupt|BrokenPipeError|"
    r"WorkflowError|RayTaskError|FailedJobError|subprocess\.TimeoutExpired|ConnectionResetError|EOFError(?!: EOF when reading a line)|GeneratorExit|WorkerError|Actor(?:Unavailable|Died)Error|RayActorError|WorkerCrashedError|NodeDiedError|LocalRayletDiedError|UncompletedJobError|StopIteration|"
    r"DataLoader worker \(pid\(s\)"
)
#: A report that lists what might have happened (Ray's, of a dead worker) proves nothing.
GUESSES = r"(?:common|potential root|possible) causes"
#: The last line of a traceback: `pkg.module.SomeError: message`, also behind a prefix that a launcher puts before it.
EXCEPTION = r"^(?:\[[^\]]{0,40}\]:?\s*|\S{1,40}[:|>]\s+|│\s*)?(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Failure|Violation|NotFound|Missing\w*|Invalid\w*|Timeout|Unsupported\w*)(?: ?:\s|:?\s*$)|^Exception(?: ?:\s|:?\s*$)"

#: Hydra's `instantiate` prints the exception's repr below the target's name and leaves the traceback out.
HYDRA_ERROR = r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\(['\"]"

BUILTIN = (
    "ArithmeticError|AssertionError|AttributeError|FileExistsError|FileNotFoundError|ImportError|IndexError|KeyError|LookupError|NameError|"
    "NotADirectoryError|NotImplementedError|OSError|PermissionError|RecursionError|RuntimeError|TypeError|UnboundLocalError|UnicodeDecodeError|"
    "ValueError|ZeroDivisionError|torch\\.AcceleratorError"
)


def ends_traceback(hit: Hit) -> bool:
    """Accept a line just below a traceback, unless the interpreter ignored that exception."""
    if re.search(REPORTS, hit.line.text):
        return False
    above = hit.before(40)
    block = above.rsplit("Traceback (most recent call last)", 1)
    tail = block[-1] if len(block) == 2 else above
    if not re.search(r'File "[^"\n]+", line \d+', "\n".join(tail.splitlines()[-8:])):
        return False
    return not _ignored(block[0])


def is_uncaught(hit: Hit) -> bool:
    return _told_by_hydra(hit) if re.match(HYDRA_ERROR, hit.line.text) else ends_traceback(hit)


def _told_by_hydra(hit: Hit) -> bool:
    """Accept an error below Hydra's `Error instantiating`, where the launcher then gave up."""
    above = hit.context(8)
    return (
        bool(above)
        and above[-1].startswith(("Error in call to target ", "Error instantiating "))
        and any("Error executing job with overrides" in text for text in above)
    )


def _ignored(text_above_traceback: str) -> bool:
    last = text_above_traceback.rstrip().rsplit("\n", 2)[-2:]
    return any("Exception ignored in" in line or "--- Logging error ---" in line for line in last)


def ends_ignored_traceback(hit: Hit) -> bool:
    above = hit.before(40).rsplit("Traceback (most recent call last)", 1)
    return len(above) == 2 and _ignored(above[0]) and 'File "' in above[1]


RULES = (
    Rule(
        name="ddp-parameters-differ",
        cause="parameter_mismatch",
        tier=Tier.SPECIFIC,
        looks="`params[1] in this process with sizes [54275, 3] appears not to match strides of the same param in process "
        "0`, `DDP expects same model across all ranks`, `parameter digests differ`",
        why="The ranks built different models: different numbers of points, another order or memory format, another "
        "random state. For 3DGS: each rank read or initialised the Gaussians by itself.",
        remedy="Let rank 0 build the model and broadcast its parameters, made contiguous, before DDP wraps it; compare their "
        "digests. The same seed alone is not enough: strides must be equal too.",
        phase="init",
        patterns=patterns(
            r"^(?:[\w.]+\.)?(?:ReplicasDiffer|RowsDiffer|ParameterMismatch): |params\[\d+\] in this process with sizes|appears not to match (?:strides|sizes) of the same param",
            r"DDP expects same model across all ranks|has \d+ params, while rank \d+ has inconsistent",
            r"(?i)parameter (?:digest|checksum|hash)e?s?[^\n]{0,40}(?:differ|mismatch|not equal|unequal)|(?:parameters|params|weights|model states?) (?:differ|are different|are not (?:equal|identical|in sync)|mismatch(?:ed)?|diverged) (?:across|between|on|among) (?:the )?(?:all )?(?:ranks|processes|replicas|workers)",
        ),
    ),
    Rule(
        name="ddp-unused-parameters",
        cause="unused_parameters",
        tier=Tier.SPECIFIC,
        looks="`Expected to have finished reduction in the prior iteration before starting a new one`",
        why="DDP waits for a gradient of every parameter; some took no part in the loss this time, or took part twice.",
        remedy="Take those parameters out of the wrapped module or into the loss; `find_unused_parameters=True` costs a "
        "pass over the graph each step; `static_graph=True` for checkpointing.",
        phase="step",
        patterns=patterns(
            r"Expected to have finished reduction in the prior iteration",
            r"parameters that were not used in producing (?:the )?(?:loss|its output)",
            r"Expected to mark a variable ready only once|Parameter indices which did not receive grad|did not receive grad for rank",
        ),
        unless=re.compile(r"did not find any unused parameters"),
    ),
    Rule(
        name="diverged",
        cause="diverged",
        tier=Tier.SPECIFIC,
        looks="`Loss is nan, stopping training`, `found NaN in local grad norm`, `loss: nan` from a step to the end",
        why="The optimisation blew up: too large a learning rate, a division by zero, overflow in 16 bits.",
        remedy="Lower the learning rate, warm up, clip gradients, train the named part in float32; "
        "torch.autograd.set_detect_anomaly(True) names the operation. Do not resume from a checkpoint after it.",
        phase="step",
        patterns=patterns(
            r"^(?:[\w.]+\.)?Diverged: ",
            r"(?i)\bloss(?:es)? (?:is|are|was|became|becomes|went|has become|turned)(?: to)? (?:nan|inf|-inf|infinite|infinity|non-?finite|not finite)",
            r"(?i)loss[^\n]{0,60}\b(?:is|returned in `training_step` is) (?:nan|inf)[^\n]{0,20}(?:stop|abort|exit|or inf|\.)",
            r"(?i)\b(?:infinite|non-?finite|nan|inf) (?:train(?:ing)? |total )?loss\b[^\n]{0,40}(?:detected|encountered|found|abort|stop|exit|terminat)",
            r"(?i)found (?:NaN|Inf|nan/inf)\w* in (?:local |global )?(?:grad|loss|param|output|weight)|(?:NaN|Inf|non-finite)s? (?:or (?:NaN|Inf)s? )?(?:detected|found|encountered|values?) in (?:the )?(?:loss|grad|param|output|input tensor|weights|activations)|rerun_state_machine[^\n]*(?:nan|inf)",
            r"Minimum loss scale reached|Current loss scale already at minimum|FloatingPointError|returned nan values in its \d+th output|total norm (?:of order|for gradients)[^\n]*non-finite",
            r"(?i)\b(?:training|optimi[sz]ation|loss|run|model) (?:has |is )?(?:diverged|diverging|exploded)\b|divergence detected",
        ),
        unless=re.compile(r"(?i)\bno (?:nan|inf|non-?finite)|\bif (?:the )?loss|to avoid|overflow encountered in (?:exp|cast)|skipping (?:this )?(?:step|batch|update)"),
    ),
    Rule(
        name="collapsed",
        cause="diverged",
        tier=Tier.SPECIFIC,
        looks="`109588 GSs pruned. Now having 2 GSs.`, `Number of Gaussians: 0`, `All Gaussians were pruned`",
        why="The model was pruned to nothing: opacities or scales left the range that pruning keeps, all at once. "
        "Errors below it (an empty tensor, a division by zero) come from the empty model.",
        remedy="Lower the opacity threshold of pruning and the learning rate of opacities; look at what reset them just before; let "
        "densification end earlier. Continue from a checkpoint before it, not after.",
        phase="step",
        patterns=patterns(
            r"(?i)\b(?:all|every) (?:the )?(?:remaining |\d+ )?(?:gaussians?|splats?|GSs?) (?:were |was |have been |has been |got |are )?(?:pruned|culled|removed|deleted)|\b(?:no|0|zero) (?:gaussians|splats|GSs?) (?:are |were )?(?:left|remain\w*|alive|survived?)|(?:model|scene) (?:has )?collapsed (?:to|at|:)|\bnow having 0 GSs\b|gaussians?, remaining 0\b",
        ),
        unless=re.compile(r"(?i)\bif\b|would|outside|below the"),
    ),
    Rule(
        name="extension-build",
        cause="extension_build",
        tier=Tier.SPECIFIC,
        looks="`fatal error: cuda_runtime_api.h: No such file or directory`, `ninja: build stopped: subcommand failed`, "
        "`Error building extension`, `nvcc fatal: Unsupported gpu architecture`",
        why="A CUDA or C++ extension failed to compile at start or installation: compiler, CUDA toolkit and torch do not "
        "match, or headers are missing.",
        remedy="Take the built wheel for this torch and CUDA, or load a toolkit of torch's CUDA version (`python -c 'import "
        "torch; print(torch.version.cuda)'`), a gcc that it accepts, and set CUDA_HOME and TORCH_CUDA_ARCH_LIST. "
        "Build once on a login node, not in every job.",
        phase="startup",
        patterns=patterns(
            r"\bfatal error: \S+\.(?:h|hpp|hh|cuh|inc)\b|: No such file or directory\s+#include",
            r"nvcc fatal\b|unsupported GNU version|[^\s:]\.(?:cu|cuh|cpp|cc|cxx|h|hpp)(?:\(\d+\)|:\d+(?::\d+)?): (?:catastrophic )?error\b|(?:ld|collect2|cc1plus|g\+\+|gcc|clang)(?:\.\w+)?: (?:fatal )?error|cannot find -l\w+|undefined reference to `",
            r"Error building extension|Error compiling objects for extension|Ninja is required to load C\+\+ extensions|CUDAMismatchException|Installed CUDA version \S+ does not match the version torch was compiled with|detected CUDA version \([^)]*\) mismatches|CUDA_HOME environment variable is not set|RuntimeError: Unable to find a suitable compiler|CUDA (?:toolkit|compiler)[^\n]*not found",
            r"ninja: (?:build stopped|error|fatal)|Command '\['ninja'[^\n]*non-zero|error: command '[^']*(?:gcc|g\+\+|nvcc|cl\.exe|cmake|ninja|clang)[^']*' failed|CMake Error|make(?:\[\d+\])?: \*\*\* [^\n]*Error \d+|No such file or directory: '[^']*nvcc'|nvcc: (?:command )?not found",
            r"(?:Failed|ERROR: Failed|Could not) build(?:ing)? (?:wheels?|editable) for|subprocess-exited-with-error|Failed to build installable wheels|triton\.compiler\.errors|Failed to (?:compile|build) (?:CUDA|the )?(?:extension|kernel)s?",
        ),
        # pip's message; if a build failed, the compiler's messages stand above it.
        complaint=re.compile(r": (?:command )?not found|subprocess-exited-with-error|(?:Failed|Could not) build(?:ing)? (?:wheels?|editable) for|Failed to build installable wheels"),
        unless=re.compile(r"warning #|-Werror|cv2\.error|OpenCV\("),
    ),
    Rule(
        name="environment",
        cause="environment",
        tier=Tier.SPECIFIC,
        looks="`ModuleNotFoundError: No module named 'cv2'`, `cannot open shared object file`, `GLIBC_2.34 not found`, "
        "`no kernel image is available`, `torchrun: command not found`",
        why="The job's environment is not the one it was written for: a package, library, driver or network that is "
        "there on the login node is not there, or not in that version, on the compute node.",
        remedy="Activate the environment inside the job script, not before it; install the named package at the version "
        "that the program wants; `python -c 'import torch; print(torch.__version__, torch.version.cuda)'` on the node. "
        "Download weights and data beforehand.",
        phase="startup",
        patterns=patterns(
            r"ModuleNotFoundError\b|\bNo module named \S+|PackageNotFoundError|DistributionNotFound",
            r"cannot open shared object file|version [`'](?:GLIBC|GLIBCXX|CXXABI)\S*' not found|undefined symbol: |symbol lookup error|DLL load failed",
            r"no kernel image is available|CUDA driver version is insufficient|NVIDIA driver on your system is too old|Found no NVIDIA driver|Torch not compiled with CUDA|Driver/library version mismatch|libcuda\.so[^\n]*(?:not found|cannot)|forward compatibility was attempted|device kernel image is invalid|the provided PTX was compiled with an unsupported toolchain",
            r"ImportError: (?!.*(?:circular import|attempted relative import))|ABI[^\n]*incompatib|may indicate binary incompatibility|Numpy is not available|compiled using NumPy 1\.x cannot be run",
            r"(?:^|[\s:])[\w./+-]{1,120}: command not found|bad interpreter: |(?:slurm_script|\bbash|\bsh|\.sh|/job_script)[\w./-]*: (?:line \d+: )?[^\n:]+: Permission denied|execve\(\): [^\n]*(?:No such file|Permission denied)|: Exec format error|error: Unable to locate a modulefile",
            r"(?:EnvironmentNameNotFound|EnvironmentLocationNotFound|CondaError|CommandNotFoundError|ResolvePackageNotFound|UnsatisfiableError|PackagesNotFoundError)\b|Could not find conda environment|Run 'conda init' before|Could not find a version that satisfies|No matching distribution found|ResolutionImpossible",
            r"cannot connect to X server|no Qt platform plugin could be initialized|Could not load the Qt platform plugin",
            r"FATAL:[^\n]*(?:container|image|\.sif|squashfs|could not open)|executable file not found in \$PATH|\b(?:pyxis|enroot)\b[^\n]*(?:error|fail|couldn't)|docker: Error",
            r"(?i)We couldn't connect to 'https?://|Max retries exceeded with url|LocalEntryNotFoundError|Temporary failure in name resolution|Network is unreachable|GatedRepoError|(?:401|403) Client Error|api_key not configured|Could not (?:download|reach) https?://|<urlopen error ",
        ),
        complaint=re.compile(
            r": command not found|Unable to locate a modulefile|^(?:EnvironmentNameNotFound|EnvironmentLocationNotFound|CondaError|CommandNotFoundError|"
            r"ResolvePackageNotFound|UnsatisfiableError|PackagesNotFoundError)\b|Could not find conda environment|Run 'conda init' before|"
            r"Could not find a version that satisfies|No matching distribution found|ResolutionImpossible|Permission denied"
        ),
        unless=re.compile(r"(?i)optional|falling back|fall back|will be (?:disabled|skipped)|warn(?:ing)?\b|NCCL INFO|not installed, |Unable to register cu|Could not load dynamic library|TF-TRT"),
    ),
    Rule(
        name="settings",
        cause="misconfiguration",
        tier=Tier.SPECIFIC,
        looks="a message of dist3dgs that names a file and a setting",
        why="A setting is out of range or contradicts another one.",
        remedy="The message says what was expected and the next command to run. Not retried.",
        patterns=patterns(r"^(?:[\w.]+\.)?UserError: "),
    ),
    Rule(
        name="command-line",
        cause="code_error",
        tier=Tier.SPECIFIC,
        looks="`error: unrecognized arguments: --max_seq_length`, `can't open file 'train.py'`, `Key 'x' is not in struct`",
        why="The program was called with an option, value or file that it does not know.",
        remedy="Compare the command with `--help` of the installed version; options change between releases.",
        phase="startup",
        patterns=patterns(
            r"\berror: (?:unrecognized arguments|the following arguments are required|argument \S+: |ambiguous option|unknown (?:option|argument)|invalid choice|too few arguments|one of the arguments)",
            r"can't open file '?[^\n]*\[Errno 2\]|^Error: (?:No such option|Missing (?:option|argument|parameter)|Invalid value|Got unexpected extra argument)|Unrecognized (?:or misplaced )?options|hydra\.errors|Could not override '|ConfigAttributeError|ConfigKeyError|Key '[^']*' is not in struct|unrecognized option '",
        ),
    ),
    Rule(
        name="torch-misuse",
        cause="code_error",
        tier=Tier.GENERIC,
        looks="torch's message about wrong operands at the end of a traceback, without the exception's name: `Expected all tensors "
        "to be on the same device`, `mat1 and mat2 shapes cannot be multiplied`",
        why="A logger printed the traceback and left the exception's name out; the message is an error of the program.",
        remedy="Read the traceback's last frames in your own files. Not retried: it would fail again.",
        patterns=patterns(
            r"^Expected all tensors to be on the same device|^mat1 and mat2 shapes cannot be multiplied|^Sizes of tensors must match|"
            r"^The size of tensor a \(\d+\) must match|^Expected (?:object of )?scalar type|^Input type \(\S+\) and (?:weight|bias) type|"
            r"^element 0 of tensors does not require grad|^one of the variables needed for gradient computation"
        ),
        accept=ends_traceback,
    ),
    Rule(
        name="exception",
        cause="code_error",
        tier=Tier.GENERIC,
        looks="a Python traceback that ends in `TypeError`, `KeyError`, `AssertionError`, ...",
        why="An error of the program or of its configuration, the same on every machine; not the cluster.",
        remedy="Read the traceback's last frames in your own files. Not retried: it would fail again.",
        patterns=patterns(EXCEPTION, r"^SyntaxError: |^IndentationError: |^TabError: ", HYDRA_ERROR),
        accept=is_uncaught,
    ),
    Rule(
        name="terminate",
        cause="code_error",
        tier=Tier.SIGNAL,
        looks="`terminate called after throwing an instance of 'std::...'` with a `what():`, a failed C++ check",
        why="A native library aborted on a check that it names.",
        remedy="The `what():` line and the library's issue tracker; GPU or collective errors have rules of their own.",
        patterns=patterns(r"^(?:\[[^\]]*\]:?)?\s*what\(\):  \S|Check failed: |F\d{4,8} [\d:.]+ +\d+ \S+\.cc:\d+\] |Assertion [`'][^`'\n]*' failed"),
    ),
    Rule(
        name="segmentation-fault",
        cause="gpu_fault",
        tier=Tier.SIGNAL,
        looks="`Signal 11 (SIGSEGV) received by PID`, `Segmentation fault (core dumped)`, exit code 139",
        why="Native code crashed: driver, GPU library or extension. Without a Python traceback the machine is more "
        "likely at fault than the program.",
        remedy="Run again on another node; if it follows the program, `python -X faulthandler` shows the frame.",
        patterns=patterns(
            r"SIGSEGV|[Ss]egmentation fault|signal 11\b|Signal 11\b",
            signal_exits(11),
        ),
        unless=re.compile(f"{GUESSES}|{SIGNAL_TALK}"),
    ),
    Rule(
        name="bus-error",
        cause="shared_memory",
        tier=Tier.SIGNAL,
        looks="`Signal 7 (SIGBUS) received by PID`, `Bus error (core dumped)`, exit code 135",
        why="A page of a mapped file could not be loaded, nearly always because /dev/shm is full.",
        remedy="`df -h /dev/shm` on the node; a bigger one or fewer loader workers.",
        patterns=patterns(r"SIGBUS|\b[Bb]us error\b", signal_exits(7)),
        unless=re.compile(SIGNAL_TALK),
    ),
    Rule(
        name="illegal-instruction",
        cause="environment",
        tier=Tier.SIGNAL,
        looks="`Illegal instruction (core dumped)`, `Signal 4 (SIGILL) received by PID`, exit code 132",
        why="SIGILL: the program, or a library, was built for another processor than this node's.",
        remedy="Build or install on a node of this kind (`lscpu` there), without `-march=native` from elsewhere; or ask for nodes "
        "of one kind (`#SBATCH --constraint`).",
        patterns=patterns(r"\b[Ii]llegal instruction\b|\bSIGILL\b", signal_exits(4)),
        unless=re.compile(SIGNAL_TALK),
    ),
    Rule(
        name="floating-point-exception",
        cause="crashed",
        tier=Tier.SIGNAL,
        looks="`Floating point exception (core dumped)`, `Signal 8 (SIGFPE) received by PID`, exit code 136",
        why="SIGFPE: native code divided an integer by zero, most often by a size or a count that was 0.",
        remedy="`python -X faulthandler` names the Python line above it; look for an empty tensor, image or model there. Not the "
        "cluster: the same input ends the same way on any node.",
        patterns=patterns(
            r"\bSIGFPE\b|[Ff]loating[- ]point exception\b|\b(?:on|by|of|with|received|got|caught|fatal) signal:? 8\b|\b[Ss]ignal:? 8 \(|\barithmetic exception\b",
            signal_exits(8),
        ),
        unless=re.compile(f"{GUESSES}|{SIGNAL_TALK}"),
    ),
    Rule(
        name="aborted",
        cause="crashed",
        tier=Tier.SIGNAL,
        looks="`Aborted (core dumped)`, `Signal 6 (SIGABRT) received by PID`, exit code 134, and no reason above it",
        why="SIGABRT: native code aborted on a check of its own (an assertion, a corrupted heap, an exception that nobody "
        "caught) and did not get its reason into the log.",
        remedy="The reason is printed to stderr just before: give that file too. Else `python -X faulthandler` shows the "
        "frame; of a core file `gdb python CORE -ex bt`.",
        patterns=patterns(
            r"\bAborted\b[^\n]{0,30}\(core dumped\)|\bSIGABRT\b|task[s]? [\d,-]+: Aborted|Fatal Python error: Aborted|\b(?:on|by|of|with|received|got|caught|fatal) signal:? 6\b|\b[Ss]ignal:? 6 \(|line \d+: +\d+ Aborted\b|^Aborted\s*$",
            signal_exits(6),
        ),
        unless=re.compile(f"{GUESSES}|{SIGNAL_TALK}"),
    ),
    Rule(
        name="other-signal",
        cause="crashed",
        tier=Tier.SIGNAL,
        looks="`Trace/breakpoint trap (core dumped)`, `Bad system call`, `Signal 5 (SIGTRAP) received by PID`, exit code 133 or 159",
        why="The process's own code raised the signal: a trap (SIGTRAP) or a system call that the "
        "container forbids (SIGSYS).",
        remedy="SIGSYS: run outside the container, or with another seccomp profile. SIGTRAP: `gdb python CORE -ex bt` of the core file.",
        patterns=patterns(
            r"\bSIG(?:TRAP|SYS)\b|Trace/breakpoint trap|\bBad system call\b|\b(?:on|by|of|with|received|got|caught|fatal) signal:? (?:5|31)\b|\b[Ss]ignal:? (?:5|31) \(",
            f"{signal_exits(5)}|{signal_exits(31)}",
        ),
        unless=re.compile(f"{GUESSES}|{SIGNAL_TALK}"),
    ),
    Rule(
        name="signal-from-outside",
        cause="killed",
        tier=Tier.SIGNAL,
        looks="`Hangup`, `User defined signal 1`, `Signal 1 (SIGHUP) received by PID`, exit code 129 or 138",
        why="SIGHUP comes when the terminal or the connection goes away, SIGUSR1 and SIGUSR2 from a scheduler's warning "
        "(`#SBATCH --signal`) that the program has no handler for: both end a process that does not expect them.",
        remedy="SIGHUP: start it with `sbatch` or under `nohup`, not in a terminal that closes. SIGUSR1: handle it, or leave "
        "`#SBATCH --signal` out.",
        patterns=patterns(
            r"\bSIG(?:HUP|USR[12])\) received by PID|terminated with signal SIG(?:HUP|USR[12])|died with <Signals\.SIG(?:HUP|USR[12])|^(?:\S+: line \d+: +\d+ )?(?:Hangup|User defined signal [12])\b|task[s]? [\d,-]+: (?:Hangup|User defined signal [12])",
            rf"{signal_exits(10)}|{signal_exits(12)}|(?i:exit(?:ed)?[ _]?(?:with )?(?:exit )?(?:code|status)[ =:]*129\b)",
        ),
        unless=re.compile(f"{GUESSES}|{SIGNAL_TALK}"),
    ),
    Rule(
        name="killed",
        cause="host_oom",
        tier=Tier.SIGNAL,
        looks="`Signal 9 (SIGKILL) received by PID`, a bare `Killed`, exit code 137, and nothing from Slurm that explains it",
        why="SIGKILL that no scheduler announces is the kernel's out-of-memory killer in nearly all cases.",
        remedy="`sacct -j ID --format=JobID,State,MaxRSS,ReqMem` and `dmesg -T | grep -i oom` on the node; more memory or "
        "fewer loader workers. If memory was far from its limit, somebody killed it.",
        patterns=patterns(
            r"SIGKILL|signal:? 9 \(Killed\)|by signal 9\b|task[s]? [\d,-]+: Killed\b|line \d+: +\d+ Killed\b|^\s*\d* ?Killed\s*$|is killed by signal: Killed",
            r"exit ?code\s*:? ?-9\b|(?:exit(?:ed|s)? (?:with )?(?:code|status)|(?:exits with )?return code)[ =:]*(?:137|-9)\b",
        ),
        unless=re.compile(r"(?i)sending|closing signal|Killing subprocess|sigkill_handler\](?![^\n]*return code)|forcefully|escalat|after SIGTERM|" + GUESSES + r"|unable to (?:shutdown|terminate)"),
    ),
    Rule(
        name="killed-by-signal",
        cause="killed",
        tier=Tier.SIGNAL,
        looks="a rank of our own run ended by SIGKILL, with memory far from its limit and no word from the scheduler",
        why="Somebody or something on the node killed the process.",
        remedy="`dmesg -T | grep -i oom` on the node; then run again.",
        patterns=patterns(r"^rank \S+ ended by signal 9 \(SIGKILL\)"),
    ),
    Rule(
        name="ignored-exception",
        cause="code_error",
        tier=Tier.IGNORED,
        looks="`Exception ignored in: <function ...>` and a traceback, and workers that exit with 1 and print nothing else",
        why="The only error that the failed workers printed.",
        remedy="Set an error file (`@record` around main, TORCHELASTIC_ERROR_FILE) so that the next failure keeps its traceback.",
        patterns=patterns(EXCEPTION),
        accept=ends_ignored_traceback,
    ),
    Rule(
        name="bare-exception",
        cause="code_error",
        tier=Tier.IGNORED,
        looks="the last line of a traceback whose frames were cut away, and no sign of a normal end",
        why="The log was cut or filtered; the exception is all that is left of it.",
        remedy="Look for the whole traceback in the job's stderr.",
        patterns=patterns(rf"^(?:{BUILTIN}): \S"),
        unless=re.compile(REPORTS),
    ),
    Rule(
        name="no-step",
        cause="no_progress",
        tier=Tier.COMMUNICATION,
        looks="a time limit or a cancellation after a long time without a step; `no progress for 1800 s`",
        why="The job was alive but did not train: a hang in a collective, the file system, a download or a lock.",
        remedy="Stacks of all ranks (`py-spy dump`, or send SIGUSR1 where faulthandler listens); look at the rank that printed "
        "least; a short timeout of the collectives ends the next hang in minutes.",
        patterns=patterns(r"(?i)no (?:training )?(?:progress|step) (?:for|in|since) (?:the last )?\d+|hang detected|(?:run|job|training) (?:has )?(?:stalled|hung|is stuck)\b|stalled for \d+"),
    ),
    Rule(
        name="loader-worker-gone",
        cause="unknown",
        tier=Tier.SYMPTOM,
        looks="`DataLoader worker (pid(s) 4711) exited unexpectedly`, and nothing from the worker itself",
        why="A loader process died without a message; memory of the host or /dev/shm that ran out does that, and so does a crash "
        "in a decoder.",
        remedy="`sacct -j ID --format=JobID,State,MaxRSS,ReqMem` for the host's memory, `df -h /dev/shm` for shared memory; "
        "with `num_workers=0` the main process shows the error.",
        patterns=patterns(r"DataLoader worker \(pid\(s\)[^)]*\) exited unexpectedly"),
    ),
    Rule(
        name="worker-failed",
        cause="unknown",
        tier=Tier.SYMPTOM,
        looks="`srun: error: node: task 0: Exited with exit code 1`, torchelastic's `ChildFailedError`, `failed (exitcode: 1)`",
        why="Something failed, and these files do not say what.",
        remedy="Give all files of the job at once: .out and .err, of all ranks and nodes.",
        patterns=patterns(
            r"error: (\S+): tasks? [\d,-]+: (?:Exited with exit code|Aborted|Terminated|Segmentation|Bus)",
            r"failed \(exitcode: -?\d+\)|\bChildFailedError\b|Root Cause \(first observed failure\)|exits? with return code = -?[1-9]|Process \d+ terminated with the following error",
            r"ProcessExitedException|ProcessRaisedException|returned non-zero exit status|failed with return code [1-9]",
            r"(?:JobState=|State: |(?:^|[|,\s]))FAILED(?:[|,\s]|$)|[Ee]xit(?:ed with)?(?: exit)? (?:code|status)[ :=]+[1-9]\d*\.?\s*$|Pipeline failed|(?i:(?:training|job|run|script) failed\b)",
            r"A worker died or was killed while executing a task|Actor(?:Unavailable|Died)Error\b|RayActorError\b|WorkerCrashedError\b|NodeDiedError\b",
        ),
    ),
    Rule(
        name="module-unknown",
        cause="unknown",
        tier=Tier.NOTE,
        looks="Lmod: `The following module(s) are unknown`",
        why="Harmless if the environment brings its own libraries; the first thing to look at if not.",
        remedy="`module spider NAME` on this cluster.",
        patterns=patterns(r'^"[\w./+-]+"(?:\s+"[\w./+-]+")*\s*$|module\(s\) are unknown'),
        accept=lambda hit: "module(s) are unknown" in hit.before(3) + hit.line.text,
    ),
)  # fmt: skip
