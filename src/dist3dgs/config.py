"""The config files: read, laid on each other, and asked which of them a setting stands in."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

#: What the Snakefile reads, in this order; files given with --configfile come after them.
FILES = ("config.yaml", "scenes.yaml", "strategies.yaml")

_FOUND = {list: "a list", str: "text", type(None): "nothing (the file is empty)"}


@dataclass(frozen=True)
class Layers:
    """Configs in the order in which they are laid on each other, each with its name; the last word counts."""

    layers: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @classmethod
    def read(cls, files: Iterable[Path]) -> "Layers":
        """Raises `UserError` naming the file, and the line where there is one."""
        return cls(tuple((_short(path), load_yaml(path)) for path in files))

    def merged(self) -> dict[str, Any]:
        """All layers in one, as Snakemake merges its config files."""
        raw: dict[str, Any] = {}
        for _, layer in self.layers:
            raw = merge(raw, layer)
        return raw

    def where(self, *keys: Any) -> str:
        """The layer that decides the setting at `keys`: the last one that has the most of that path."""
        depths = [(_depth(layer, keys), i) for i, (_, layer) in enumerate(self.layers)]
        depth, i = max(depths, default=(0, 0))
        if depth == 0:  # in none of them: the study's own file is where it belongs
            i = 0
        return self.layers[i][0] if self.layers else "the config"

    def holders(self, *keys: Any) -> list[tuple[str, Mapping[str, Any]]]:
        """Every layer that has a mapping at `keys`, and that mapping."""
        found = []
        for name, layer in self.layers:
            value: Any = layer
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, Mapping):
                found.append((name, value))
        return found

    def holding(self, key: str) -> str:
        """Every layer that has the top-level `key`."""
        return " or ".join(name for name, layer in self.layers if key in layer) or "the config"


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping):
            below = merged.get(key, {})
            # As in Snakemake, an empty mapping changes nothing, not even what is no mapping.
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value) if value else below
        else:
            merged[key] = value
    return merged


def load_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML (or JSON) file. Raises `UserError` with line and column of a syntax error, and for a key
    that stands twice in one mapping: plain YAML readers take the last one and say nothing."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run where config/ is, or give --config FOLDER") from None
    except (yaml.YAMLError, ValueError) as e:
        raise UserError(f"{_short(path)}: not valid YAML: {e}") from None
    if not isinstance(value, dict):
        found = _FOUND.get(type(value), type(value).__name__)
        raise UserError(f"{_short(path)}: expected a mapping of settings (`name: value`), found {found}")
    return value


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen and isinstance(key.value, str):
                raise yaml.YAMLError(
                    f"`{key.value}` stands in line {seen[key.value]} and again in line {line}"
                )
            seen[str(key.value)] = line
        return super().construct_mapping(node, deep)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that reads a study; for `matrix.load_study`."""
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config"),
        help="folder of config.yaml, scenes.yaml, strategies.yaml",
    )
    add_configfile_option(parser)


def add_configfile_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configfile", type=Path, action="append", default=[], metavar="FILE",
        help="a file to lay on top, as Snakemake's --configfile does; may be given again",
    )  # fmt: skip


def _depth(layer: Any, keys: tuple[Any, ...]) -> int:
    """How many of `keys`, one inside the other, a layer has."""
    for depth, key in enumerate(keys):
        known = range(len(layer)) if isinstance(layer, list) else layer if isinstance(layer, Mapping) else ()
        if key not in known:
            return depth
        layer = layer[key]
    return len(keys)


def _short(path: Path) -> str:
    """Relative to where we are, if it is below it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
