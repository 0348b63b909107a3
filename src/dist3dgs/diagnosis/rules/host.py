"""Rules for the host: memory, shared memory, disk."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from .rule import Rule, Tier, patterns

#: Hidden folders of a home, and those that caches have by name.
CACHE = (
    r"(?:/(?:root|[\w.-]*home\w*/[^\s'\":]{0,80}?[\w.-]+|[Uu]sers/[\w.-]+|u/[\w.-]+)|~|\$HOME)/\.[A-Za-z][\w.-]*(?=[/'\"\s:]|$)|"
    r"/\.(?:cache|config|local|triton|nv|keras|huggingface|torch|cupy|conda|singularity|apptainer|ipython|jupyter|wandb|numba)(?=[/'\"\s:]|$)|"
    r"/(?:torch_extensions|matplotlib|fontconfig|ComputeCache|numba_cache|source-cache)(?=[/'\"\s:]|$)"
)
HOME = r"(?:/[\w.-]+){0,4}?(?:/[\w.-]*home\w*|/[Uu]sers|/u)/[\w.-]+"
NOT_WRITABLE = r"(?i:permission denied|read-only file system|disk quota exceeded|not (?:a )?writ(?:e)?able|\[Errno (?:13|30|122)\]|os error (?:13|30|122)\b|\b(?:EACCES|EROFS|EDQUOT)\b)"
#: Part of a path -> the variable that moves that cache.
CACHE_VARIABLES = (
    (r"torch_extensions", "TORCH_EXTENSIONS_DIR"),
    (r"triton", "TRITON_CACHE_DIR"),
    (r"(?i)matplotlib", "MPLCONFIGDIR"),
    (r"huggingface|transformers|/hub/models--", "HF_HOME"),
    (r"pip(?=[/'\"\s:]|$)", "PIP_CACHE_DIR"),
    (r"/uv(?=[/'\"\s:]|$)", "UV_CACHE_DIR"),
    (r"torch/hub|cache/torch|/\.torch", "TORCH_HOME"),
    (r"inductor", "TORCHINDUCTOR_CACHE_DIR"),
    (r"\.nv\b|ComputeCache", "CUDA_CACHE_PATH"),
    (r"numba|no locator available", "NUMBA_CACHE_DIR"),
    (r"cupy", "CUPY_CACHE_DIR"),
    (r"wandb", "WANDB_DIR"),
    (r"\.conda|conda/pkgs|NotWritable", "CONDA_PKGS_DIRS"),
    (r"apptainer", "APPTAINER_CACHEDIR"),
    (r"singularity", "SINGULARITY_CACHEDIR"),
    (r"\.ipython", "IPYTHONDIR"),
    (r"\.jupyter", "JUPYTER_CONFIG_DIR"),
    (r"\.keras", "KERAS_HOME"),
    (r"\.local/share", "XDG_DATA_HOME"),
    (r"\.local/lib", "PYTHONUSERBASE"),
    (r"\.config", "XDG_CONFIG_HOME"),
)


def _variable_first(line: str) -> str:
    """Name the variable that moves the cache in the line."""
    name = next((name for path, name in CACHE_VARIABLES if re.search(path, line)), "XDG_CACHE_HOME")
    return f"`export {name}=FOLDER` in the job script, FOLDER on a file system that the node may write to. "


RULES = (
    Rule(
        name="shared-memory",
        cause="shared_memory",
        tier=Tier.SPECIFIC,
        looks="`DataLoader worker is killed by signal: Bus error`, `unable to write to file </torch_...>`, SIGBUS",
        why="/dev/shm is full or too small (64 MiB in a default container): workers pass batches through it, and a "
        "write past its end is a bus error.",
        remedy="Give the job more (`--shm-size`, a bigger /dev/shm, or the memory limit it counts against) or lower "
        "the number of loader workers; clean files that dead jobs left in /dev/shm.",
        patterns=patterns(
            r"killed by signal: Bus error",
            r"Unexpected bus error encountered in worker|(?:insufficient|out of|not enough) shared memory\b",
            r"unable to (?:mmap|write|resize|open|allocate)[^\n]*(?:</?torch_|/torch_|/dev/shm|shared memory)",
            r"/dev/shm/?[^\n]*(?:No space left|Cannot allocate|failed|not enough)|(?:No space left|posix_fallocate|shm_open|ftruncate)[^\n]*(?:/dev/shm|\bshm\b|nccl-)",
            r"\bshm\w*\.(?:h|cc)\b[^\n]*(?:posix_fallocate|ftruncate|shm_open|No space left|failed to extend)",
            r"Error while (?:creating|attaching to) shared memory segment",
            r"received \d+ items of ancdata|torch_shm_manager[^\n]*(?:error|fail)",
        ),
        unless=re.compile(r"CUDA|shared memory per block|__shared__"),
    ),
    Rule(
        name="cache-not-writable",
        cause="environment",
        tier=Tier.SPECIFIC,
        looks="`PermissionError: [Errno 13] Permission denied: '/home/me/.cache/torch_extensions'`, `[Errno 30] Read-only file system`, "
        "`[Errno 122] Disk quota exceeded` on a hidden folder of the home",
        why="The home, or a program's cache in it, cannot be written to on this node: not mounted, mounted read-only, "
        "another owner, or its quota used up. The results folder is not the problem.",
        remedy="Caches follow XDG_CACHE_HOME, some a variable of their own (TORCH_EXTENSIONS_DIR, TRITON_CACHE_DIR, MPLCONFIGDIR, "
        "HF_HOME, PIP_CACHE_DIR, TORCH_HOME, CUDA_CACHE_PATH, NUMBA_CACHE_DIR): export them in the job script. `df -h $HOME`, "
        "`quota -s` and `touch $HOME/.cache/x` on the node show which it is; with a full quota, empty the cache.",
        phase="startup",
        warns=True,
        first_of_all=_variable_first,
        patterns=patterns(
            rf"(?:{NOT_WRITABLE})[^\n]{{0,120}}?(?:{CACHE})",
            rf"(?:{CACHE})[^\n]{{0,240}}?(?:{NOT_WRITABLE})",
            rf"Permission denied: '{HOME}/?'|cannot (?:create|access) (?:directory )?['‘`]?{HOME}['’]?/?: Permission denied|(?:\[Errno 30\] )?Read-only file system: '{HOME}(?:/[^'\n]*)?'|\b(?:cd|mkdir|chdir)\b[^\n]{{0,40}}{HOME}/?['’]?: (?:No such file or directory|Permission denied)",
            r"(?i)no writable cache director(?:y|ies)(?! *$)|cache director(?:y|ies)[^\n]{0,120}(?:cannot|could not|can't|unable to) (?:be )?(?:creat|writ)\w*|(?:cannot|could not|can't|unable to|failed to) (?:creat|writ)\w*(?: to)?[^\n]{0,20} cache (?:dir\w*|folder|path)[^\n]{0,200}(?:permission|read-only|quota)|no locator available for file|\bNotWritableError\b",
            r"^(?:[\w.]+: )?[^\n]{0,60}requires access to a writable cache directory",
        ),
        complaint=re.compile(r"^(?:mkdir|touch|cd|cp|rm|chmod|ln|tee|mv)\b|line \d+: (?:cd|/)|^\S*(?:bash|sh)\b"),
        unless=re.compile(r"(?i)^(?:ls|find|du|rsync|tar): |\bwarn(?:ing)?s?\b|disabl|falling back|fall back|created a temporary|instead|will (?:not|be)|skipp|ignor|No space left|without cach|\.(?:ssh|netrc|Xauthority|bash\w*|profile)\b"),
    ),
    Rule(
        name="disk-full",
        cause="disk_full",
        tier=Tier.SPECIFIC,
        looks="`No space left on device` (28), `Disk quota exceeded` (122), a checkpoint writer that fails",
        why="The file system or your quota on it, in bytes or in number of files, is used up.",
        remedy="`df -h`, `df -i`, `quota -s` (or the site's `lfs quota`) on the folder that is written to; remove old checkpoints "
        "or write to a larger file system.",
        phase="checkpoint",
        patterns=patterns(
            r"^(?:[\w.]+\.)?DiskFull: |(?i:disk quota exceeded)|(?i:quota exceeded on|over (?:disk )?quota\b)",
            r"(?i)no space left on device|not enough (?:free )?(?:disk )?space|disk (?:is )?full|insufficient disk space",
            r"\[Errno (?:28|122)\]|\bENOSPC\b|\bEDQUOT\b|os error (?:28|122)\b|code: (?:28|122), kind: |FilesystemQuotaExceeded|\bStorageFull\b",
            r"PytorchStreamWriter failed writing file|inline_container\.cc[^\n]*unexpected pos \d+ vs \d+|enforce fail at inline_container",
            r"File size limit exceeded|\bSIGXFSZ\b",
        ),
    ),
    Rule(
        name="oom-killer",
        cause="host_oom",
        tier=Tier.PROOF,
        looks="`slurmstepd: error: Detected 1 oom_kill event in StepId=...`, `task 0: Out Of Memory`, the kernel's "
        "`Out of memory: Killed process`",
        why="The processes of the job used more host memory than it was given, and the kernel killed one.",
        remedy="Ask for more memory (`#SBATCH --mem`) or use fewer loader workers and less caching. `sacct -j ID "
        "--format=MaxRSS,ReqMem` says how much is needed.",
        patterns=patterns(
            r"(?i)detected \d+ oom[-_ ]kill|oom[-_]kill event|killed by the cgroup out-of-memory handler|Some of the step tasks have been OOM Killed",
            r"task[s]? [\d,-]+: Out Of Memory",
            r"(?i)out of memory: kill(?:ed)? process|memory cgroup out of memory|invoked oom-killer|oom-kill:constraint|oom_reaper: reaped",
            r"(?i)(?:exceeded|exceeds?) (?:job|step|its|the)? ?(?:\S+ )?memory (?:usage )?limit|being killed for (?:memory|exceeding memory)",
            r"(?:^|[\s|,=:])OUT_OF_ME(?:MORY)?\b",
            r"\bOOMKilled\b|\bTERM_MEMLIMIT\b|PBS: job killed: v?mem \S+ exceeded|running low on memory[^\n]*(?:killed|threshold)|memory on the node[^\n]*exceeds the memory usage threshold",
        ),
        unless=re.compile(r"CUDA|cuda|gpu memory limit"),
    ),
    Rule(
        name="host-allocation-failed",
        cause="host_oom",
        tier=Tier.SPECIFIC,
        looks="`DataLoader worker (pid n) is killed by signal: Killed`, `MemoryError`, `can't allocate memory`, `std::bad_alloc`",
        why="An allocation in host memory was refused, or the kernel killed a loader worker.",
        remedy="As above: more memory for the job, fewer loader workers, smaller cache; check the limit with `ulimit -v`.",
        patterns=patterns(
            r"DataLoader worker \(pid[^)]*\) (?:is|was) killed by signal: Killed",
            r"DefaultCPUAllocator: (?:can't|not enough)|not enough memory: you tried to allocate",
            r"(?:^|[\s.:])(?:_?ArrayMemoryError|MemoryError)\b(?::|\s*$)",
            r"\[Errno 12\] Cannot allocate memory|\bfork: Cannot allocate memory|mmap failed: Cannot allocate memory|error: Cannot allocate memory",
            r"std::bad_alloc|memory allocation of \d+ bytes failed|ray\.exceptions\.OutOfMemoryError",
        ),
        unless=re.compile(r"ibv_|NCCL WARN|CUDA"),
    ),
)  # fmt: skip
