"""Commands that our texts tell a person to type, and how each is exercised.

`commands()` finds them: lines of fenced blocks, code spans that begin with a program, and lines of comments in config
files. WAYS says how each is tried; the first pattern that matches the whole command counts. A new command in a text
needs a row there only if none matches, and tests/unit/test_texts.py says so.
"""

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TEXTS = (
    *("README.md", "CONTRIBUTING.md", "config/*.md", "config/*.yaml", "docs/**/*.md", "docs/**/*.yaml"),
    *("profiles/*/*.yaml", "Snakefile", "workflow/rules/*.smk", "results/reference/*.md"),
)
#: Our own programs and Slurm's.
OURS = (
    *("snakemake", "dist3dgs", "make", "sbatch", "srun", "salloc", "sinfo", "squeue", "sacct", "sacctmgr"),
    *("scontrol", "scancel", "sprio", "seff"),
)
#: A code span or a line of an untagged block is a command if it begins with one of these and has arguments.
PROGRAMS = (
    *OURS,
    *("python", "python3", "pip", "bash", "sh", "pytest", "torchrun", "nohup", "watch", "mail"),
    *("git", "ssh", "tmux", "source", "export", "eval", "cd", "apt", "apt-get", "conda", "curl", "wget"),
    *("nvidia-smi", "nvcc", "apptainer", "colmap", "ffmpeg", "heif-convert", "module", "ulimit", "df"),
)
#: Made from the diagnosis's rules, for any program's failures: of its commands only ours and Slurm's count.
REMEDIES = "docs/troubleshooting.md"
SHELLS = ("bash", "sh", "console")


class How(enum.Enum):
    """Ways to exercise a command, from the most real to the least."""

    RUN = "run in a prepared study: tests/workflow/test_commands.py"
    ON_SLURM = "run on the test cluster, in a prepared study: tests/slurm/test_texts.py"
    DRY_RUN = "planned by `snakemake -n` in a prepared study: tests/workflow/test_commands.py"
    MAKE = "planned by `make -n`: tests/unit/test_texts.py"
    OPTIONS = "its --help names each option: tests/workflow/test_commands.py; the row's reason says why it is not run"
    SHELL = "a shell can parse it: tests/unit/test_texts.py; the row's reason says why it is not run"


@dataclass(frozen=True)
class Way:
    """Commands that match `pattern` as a whole, and how they are exercised."""

    pattern: str
    how: How
    reason: str = ""
    """Required with OPTIONS and SHELL: why such a command is not run."""
    exits: tuple[int, ...] = (0,)
    """Exit statuses of a command that did what the text promises."""


WAYS = (
    Way(r".*\.\.\..*", How.SHELL, "cut short in the text, not to be typed"),
    # -- the workflow
    Way(r"snakemake -.*", How.DRY_RUN),
    Way(r"make .*", How.MAKE),
    # -- dist3dgs
    Way(r"dist3dgs (ingest|photographs|diagnose|launch|read|record|retry)", How.OPTIONS, "the verb's name alone"),
    Way(r"dist3dgs verify", How.RUN, exits=(0, 1)),  # 1: a check failed, which is an answer too
    Way(r"dist3dgs verify --on-node", How.OPTIONS, "run in a job by tests/slurm/test_verify.py"),
    Way(r"dist3dgs fetch-weights", How.OPTIONS, "needs the internet"),
    Way(r"dist3dgs launch .*/n2g4/.*", How.OPTIONS, "8 ranks; trained by tests/slurm/test_training.py"),
    Way(r"dist3dgs .*--watch.*", How.OPTIONS, "runs until Ctrl-C"),
    Way(r"dist3dgs diagnose .+", How.RUN, exits=(0, 1)),
    Way(r"dist3dgs \w+ --help", How.RUN),
    Way(r"dist3dgs (points|spec|status|schemas|read|launch|evaluate)( .+)?", How.RUN),
    Way(r"dist3dgs preflight --no-slurm .+", How.RUN, exits=(0, 2)),  # 2: refused, which is an answer too
    Way(r"dist3dgs (predict|recommend|project)( .+)?", How.RUN),
    Way(r"dist3dgs (site init|partitions|preflight)( .+)?", How.ON_SLURM),
    # -- Python
    Way(r"python -m dist3dgs\.cli\.logs .+", How.RUN),
    Way(r"python -m dist3dgs\.launch\.gsplat_build", How.RUN, exits=(0, 2)),  # 2: says what is missing
    Way(r"python -m dist3dgs\.predict\.validation", How.OPTIONS, "writes into the package; its test fits the same"),
    Way(r"python -m dist3dgs\.bench\..+", How.OPTIONS, "a measurement of minutes"),
    Way(r"python -m tests\.unit\.helpers\.operations", How.SHELL, "counted by tests/unit/train/test_cuda_step.py"),
    Way(r"pip install --no-deps triton.+", How.SHELL, "needs the internet"),
    Way(r"(python -m )?pytest tests/(gpu|unit/splats/test_triton\.py)", How.SHELL, "run by the test ladder"),
    Way(r"python scripts/slurm/.+", How.OPTIONS, "a measurement of minutes on the test cluster"),
    Way(r"python -X .+", How.SHELL, "an option of Python itself"),
    # -- Slurm
    Way(r"python3 tests/slurm/cluster\.py .+", How.ON_SLURM),
    Way(r"eval .*cluster\.py env.*", How.ON_SLURM),
    Way(r"sbatch --test-only", How.SHELL, "what preflight calls, without its arguments"),
    Way(r"srun -n4 dist3dgs launch", How.SHELL, "told as a mistake; refused in tests/slurm/test_guard.py"),
    Way(r"(srun|torchrun) --.+", How.SHELL, "options alone; the launcher's lines are in tests/unit/golden"),
    Way(r"(sinfo|squeue|sacct|sacctmgr|scontrol|scancel|salloc|sbatch|srun) .+", How.ON_SLURM),
    # -- set-up
    Way(r"export .+", How.RUN),
    Way(r"apt-get install .+", How.SHELL, "needs the internet and root; continuous integration installs the same"),
    Way(r"git clone URL .+", How.SHELL, "the address is the reader's"),
    Way(r"source \.venv/bin/activate", How.SHELL, "the environment of `make setup`, in which the tests run"),
    Way(r"(ssh|tmux|\$EDITOR) .+", How.SHELL, "needs a person"),
)  # fmt: skip

#: What texts write in place of a name or a number, as it is in the prepared study.
PLACES = {
    "SCENE": "builtin",
    "STRATEGY": "replicated",
    "LAYOUT": "n1g2",
    "POINT": "builtin/replicated/n1g2/r0",
    "step-00010000": "step-00000008",  # the checkpoint that the prepared study has
}


@dataclass
class Command:
    """A command and where it stands."""

    text: str
    places: list[str] = field(default_factory=list)

    @property
    def way(self) -> Way | None:
        return next((way for way in WAYS if re.fullmatch(way.pattern, self.text, re.DOTALL)), None)

    def filled(self, places: Mapping[str, str] = PLACES) -> str:
        """The command with `places` in place of the texts' placeholders."""
        return re.sub(
            "|".join(rf"(?<!\w){place}(?!\w)" for place in places), lambda m: places[m[0]], self.text
        )


def commands(how: How | None = None) -> list[Command]:
    """All commands of the texts, each once; of one way alone if it is given."""
    found: dict[str, Command] = {}
    for pattern in TEXTS:
        for path in sorted(REPOSITORY.glob(pattern)):
            text = path.read_text()
            name = str(path.relative_to(REPOSITORY))
            for start, command in _markdown(text) if path.suffix == ".md" else _comments(text):
                if name == REMEDIES and command.split()[0] not in OURS and "dist3dgs" not in command:
                    continue
                place = f"{name}:{text.count(chr(10), 0, start) + 1}"
                found.setdefault(command, Command(command)).places.append(place)
    listed = sorted(found.values(), key=lambda c: c.text)
    return listed if how is None else [c for c in listed if c.way and c.way.how is how]


def _markdown(text: str) -> Iterator[tuple[int, str]]:
    """(offset, command) in fenced blocks and code spans."""
    blocks = list(re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S))
    for block in blocks:
        for line in re.finditer(r"(?:.*\\\n)*.+", block[2]):
            command = _without_comment(line[0])
            if command and (block[1] in SHELLS or (not block[1] and _is_command(command))):
                yield block.start(2) + line.start(), command
    prose = re.sub(r"^```.*?^```", lambda m: " " * len(m[0]), text, flags=re.M | re.S)
    yield from _spans(prose)


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """(offset, command) in code spans of comments, and where a comment's line or what follows its colon is one."""
    yield from _spans("\n".join(line[line.find("#") :] if "#" in line else "" for line in text.split("\n")))
    for line in re.finditer(r"^ *#(?:.*?: +| *)((?:snakemake -|dist3dgs |python -m )[^`\n]*)", text, re.M):
        yield line.start(), _without_comment(re.split(r" {2,}", line[1])[0])


def _spans(text: str) -> Iterator[tuple[int, str]]:
    for span in re.finditer(r"`([^`]+)`", text):
        command = " ".join(re.sub(r"\n#", "\n", span[1]).split())
        if _is_command(command):
            yield span.start(), command


def _without_comment(line: str) -> str:
    joined = " ".join(line.replace("\\\n", " ").split())
    return re.sub(r"(^| )#.*", "", joined).strip()


def _is_command(text: str) -> bool:
    program, _, arguments = text.partition(" ")
    return program in PROGRAMS and bool(arguments)
