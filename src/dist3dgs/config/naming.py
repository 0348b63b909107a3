"""Names of layouts, points and files: the only place that parses or formats them.

A scaling point lives in `results/{scene}/{strategy}/{layout}/{repeat}/`, e.g. `results/bicycle/sharded/n1g4/r0/`. Of a
strategy whose blocks train in jobs of their own, each job has a folder there: `parts/coarse`, `parts/block-0`.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from ..errors import UserError, snakemake

#: Letters, digits, `_`, `-` and inner dots; first character a letter or digit. Safe in a path, a shell line and a URL.
NAME_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.))*(?<!\.)"
LAYOUT_PATTERN = r"n[1-9][0-9]{0,4}g[1-9][0-9]{0,2}"
REPEAT_PATTERN = r"r[0-9]{1,4}"
#: Jobs of a point beside the one that ends it.
PARTS, COARSE = "parts", "coarse"
PART_PATTERN = rf"{COARSE}|block-(?:0|[1-9][0-9]{{0,3}})"
MAX_NAME_LENGTH = 64
#: Files of the workflow in a point's folder, and in a scene's.
POINT_FILES = ("launch.json", "record.json")
SCENE_FILES = ("source.json", "scene.safetensors", "ingest.json")


def check_name(name: object, what: str) -> str:
    """Return `name` if it is safe as one path component, else raise `UserError` naming `what` (e.g. "scene")."""
    if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH or not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            f"{what} name {name!r}: use letters, digits, '_', '-' and single inner dots, starting with a letter "
            f"or digit, at most {MAX_NAME_LENGTH} characters. Rename it in the config."
        )
    return name


@dataclass(frozen=True, order=True, slots=True)
class Layout:
    """Number of nodes and of workers (GPUs, or CPU ranks where there is no GPU) on each: `n2g4`."""

    nodes: int
    workers_per_node: int

    @classmethod
    def parse(cls, text: object) -> "Layout":
        if not isinstance(text, str) or not re.fullmatch(LAYOUT_PATTERN, text):
            raise UserError(
                f"layout {text!r}: expected n<nodes>g<workers per node>, both at least 1, e.g. n1g1, n1g4, n2g4. "
                "Fix it in the config's `layouts` or in the target's path."
            )
        nodes, workers = text[1:].split("g")
        return _shared(int(nodes), int(workers))

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.workers_per_node

    def __str__(self) -> str:
        return f"n{self.nodes}g{self.workers_per_node}"


@cache
def _shared(nodes: int, workers_per_node: int) -> Layout:
    """Return one object for all points of a layout."""
    return Layout(nodes, workers_per_node)


@dataclass(frozen=True, order=True, slots=True)
class Point:
    """One scaling point: the unit that is trained, recorded and plotted; with `part` one of its jobs."""

    scene: str
    strategy: str
    layout: Layout
    repeat: int = 0
    part: str = ""

    def __post_init__(self) -> None:
        check_name(self.scene, "scene")
        check_name(self.strategy, "strategy")

    @classmethod
    def parse(cls, scene: str, strategy: str, layout: str, repeat: str = "r0", part: str = "") -> "Point":
        if not re.fullmatch(REPEAT_PATTERN, repeat):
            raise UserError(f"repeat {repeat!r}: expected r0, r1, r2, ... Fix it in the target's path.")
        if part and not re.fullmatch(PART_PATTERN, part):
            raise UserError(
                f"part {part!r}: expected coarse, block-0, block-1, ... Fix it in the target's path."
            )
        return cls(scene, strategy, Layout.parse(layout), int(repeat[1:]), part)

    @classmethod
    def named(cls, text: str) -> "Point":
        """Read scene/strategy/layout[/repeat[/parts/part]], as a person types it."""
        parts = text.strip("/").split("/")
        if len(parts) == 6 and parts[4] == PARTS:
            scene, strategy, layout, repeat, _, part = parts
            return cls.parse(scene, strategy, layout, repeat, part)
        if len(parts) not in (3, 4):
            raise UserError(
                f"point {text!r}: expected scene/strategy/layout[/repeat], e.g. builtin/replicated/n1g2/r0"
            )
        return cls.parse(*parts)

    @property
    def path(self) -> PurePosixPath:
        """`scene/strategy/layout/repeat`, relative to the results folder; of a part `parts/part` below that."""
        *names, part = self.names
        return PurePosixPath(*names, *((PARTS, part) if part else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Scene, strategy, layout, repeat and part, as in paths; the part is empty for a whole point."""
        return self.scene, self.strategy, str(self.layout), f"r{self.repeat}", self.part

    def folder(self, results: Path) -> Path:
        return Path(results, self.path)

    def __str__(self) -> str:
        return str(self.path)


def point_folder(folder: Path) -> Path:
    """Return the folder of the point that a folder of attempts belongs to: itself, unless it is a part's."""
    return folder.parents[1] if folder.parent.name == PARTS else folder


def is_target(path: Path) -> bool:
    """Return True if `path` has the shape of a point's or a scene's file, which Snakemake can be asked for."""
    *folders, name = Path(path).parts or ("",)
    try:
        if name in POINT_FILES and len(folders) > 4:
            part = [folders[-1]] if folders[-2] == PARTS else []
            Point.parse(*(folders[-6:-2] if part else folders[-4:]), *part)
            return not part or name == POINT_FILES[0]
        return name in SCENE_FILES and len(folders) > 1 and bool(check_name(folders[-1], "scene"))
    except UserError:
        return False


def how_to_make(path: Path, words: str = "; make it with: ") -> str:
    """Return `words` and the command that makes `path`; nothing for a path that is no target of the workflow."""
    return f"{words}{snakemake(path)}" if is_target(path) else ""
