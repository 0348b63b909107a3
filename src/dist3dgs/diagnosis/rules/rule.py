"""Rules, and the lines that they match."""

# ruff: noqa: E501 (a pattern is read best on one line)

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...logs.facts import Line
from ...runs.causes import Cause
from .remedies import REMEDIES


class Tier(enum.IntEnum):
    """Distance of a line from the root cause, wherever it stands: lower explains higher.

    A node that died explains the CUDA error on it; an exception explains the collective that its peers wait in;
    what nobody explains is a symptom.
    """

    PROOF = 0  # the machine or the scheduler says so itself
    SPECIFIC = 1  # an error whose wording names its cause
    GENERIC = 2  # an uncaught exception of the program
    COMMUNICATION = 3  # other ranks' death or delay as seen from here, or a network fault
    STOP = 4  # ended from outside
    SIGNAL = 5  # only how the process ended is known
    IGNORED = 6  # a traceback that did not itself end the process, a warning
    SYMPTOM = 7  # something failed; not why
    NOTE = 8  # odd, often harmless; proves nothing


@dataclass(slots=True)
class Hit:
    """A line that a rule matched."""

    rule: "Rule"
    pattern: int
    line: Line
    file_index: int
    order: int  # position in the file
    context: "Callable[[int], list[str]]" = field(repr=False, default=lambda n: [])
    below: "Callable[[int], list[str]]" = field(repr=False, default=lambda n: [])
    steps_above: "Callable[[], int]" = field(repr=False, default=lambda: 0)
    steps_before: int = 0
    bytes_before: int = 0
    rank: int | None = None
    node: str | None = None
    phase: str | None = None
    step: int | None = None
    event: "Mapping[str, Any] | None" = None  # the `error` event of one of our ranks that it was made of

    @property
    def handled(self) -> bool:
        """True if the program caught this exception and then failed in its handler."""
        return any("During handling of the above exception" in text for text in self.below(4))

    def before(self, num_lines: int) -> str:
        """Return the text of the lines before this one, oldest first."""
        return "\n".join(self.context(num_lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way in which a cause shows itself.

    `looks`, `why` and `remedy` are for people (docs/troubleshooting.md is made of them). Of `patterns` the earlier
    one is the better evidence. A line belongs to the first rule of the table that matches and accepts it. Lines with a
    `complaint` come from a step of the job script before the program (conda, pip): a script without `set -e` goes on.
    `first_of_all` returns the part of the remedy that depends on the line. A rule that `warns` is refuted by a few
    training steps below its line.
    """

    name: str
    cause: Cause
    tier: Tier
    looks: str
    why: str
    remedy: str
    patterns: tuple[re.Pattern[str], ...]
    complaint: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None
    accept: Callable[[Hit], bool] | None = None
    first_of_all: Callable[[str], str] | None = None
    warns: bool = False
    phase: str | None = None

    def remedy_for(self, trainer: str | None, line: str = "") -> str:
        """Return the remedy in the words of that trainer's settings where there are some, else the general one.

        What `line`, the line that the rule matched, asks for in particular comes first.
        """
        first = self.first_of_all(line) if self.first_of_all is not None and line else ""
        return first + REMEDIES.get(trainer or "", {}).get(self.name, self.remedy)


def patterns(*sources: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(source) for source in sources)


#: Lines that mention a signal although none was sent: a handler, a test's name.
SIGNAL_TALK = r"(?i:\b(?:un)?(?:register|install|enabl|disabl|ignor)\w*\b|\bhandlers?\b|\btest\w*[_ :.]|\bPASSED\b|\.\.\. ok\b)"


def signal_exits(number: int) -> str:
    """Return the source of a pattern for exit statuses of a process that signal `number` ended.

    The shell's 128 + n, Python's and torchrun's -n, Slurm's `0:n` of a failed job.
    """
    return (
        rf"(?i:exit ?code\s*:? ?-{number}\b|(?:exit(?:ed)?[ _]?(?:with )?(?:exit )?(?:code|status)|return ?code)[ =:]*(?:{128 + number}|-{number})(?!\d))|"
        rf"(?:\bFAILED\b|\bExitCode\b)[^\n]{{0,80}}\b0:{number}\b"
    )
