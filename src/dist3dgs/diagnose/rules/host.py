"""The host: memory, shared memory, disk."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from .rule import Rule, Tier, patterns

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
