"""What a rule is."""

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ...record import Cause
from ..facts import Line
from .remedies import REMEDIES


class Tier(enum.IntEnum):
    """How near to the root a line is, whatever stands before it: lower explains higher.

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

    @property
    def handled(self) -> bool:
        """The program caught this exception and tried something else, which failed too."""
        return any("During handling of the above exception" in text for text in self.below(4))

    def before(self, num_lines: int) -> str:
        """The text of the lines before this one, oldest first."""
        return "\n".join(self.context(num_lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way in which a cause shows itself.

    `looks`, `why` and `remedy` are for people (docs/troubleshooting.md is made of them). Of `patterns` the earlier
    one is the better evidence. A line belongs to the first rule of the table that matches and accepts it. Lines with a
    `complaint` come from a step of the job script before the program (conda, pip): a script without `set -e` goes on.
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
    phase: str | None = None

    def remedy_for(self, trainer: str | None) -> str:
        """In the words of that trainer's settings where there are some; else what holds for any program."""
        return REMEDIES.get(trainer or "", {}).get(self.name, self.remedy)


def patterns(*sources: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(source) for source in sources)
