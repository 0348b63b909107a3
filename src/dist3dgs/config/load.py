"""Load and merge config files, keeping track of where each setting came from."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError

#: What the Snakefile reads, in this order; files given with --configfile come after them.
FILES = ("config.yaml", "scenes.yaml", "strategies.yaml", "workloads.yaml")
#: Those of them that a config folder may lack.
OPTIONAL_FILES = ("workloads.yaml",)

_FOUND = {list: "a list", str: "text", type(None): "nothing (the file is empty)"}


@dataclass(frozen=True)
class Layers:
    """Config files in order of precedence, the last one highest, each with its name."""

    layers: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @classmethod
    def read(cls, files: Iterable[Path]) -> "Layers":
        """Raises `UserError` naming the file, and the line where there is one."""
        return cls(tuple((_short(path), load_yaml(path)) for path in files))

    def merged(self) -> dict[str, Any]:
        """Merge all layers, as Snakemake does."""
        raw: dict[str, Any] = {}
        for _, layer in self.layers:
            raw = merge(raw, layer)
        return raw

    def where(self, *keys: Any) -> str:
        """Find the layer that decides the setting at `keys`: the last one that has the longest part of that path."""
        depths = [(_depth(layer, keys), i) for i, (_, layer) in enumerate(self.layers)]
        depth, i = max(depths, default=(0, 0))
        if depth == 0:  # in none of them: it belongs in the study's own file
            i = 0
        return self.layers[i][0] if self.layers else "the config"

    def holders(self, *keys: Any) -> list[tuple[str, Mapping[str, Any]]]:
        """Yield every layer that has a mapping at `keys`, and that mapping."""
        found = []
        for name, layer in self.layers:
            value: Any = layer
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, Mapping):
                found.append((name, value))
        return found

    def holding(self, key: str) -> str:
        """List the layers that have the top-level `key`."""
        return " or ".join(name for name, layer in self.layers if key in layer) or "the config"


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `changes` into a copy of `base`, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping):
            below = merged.get(key, {})
            # As in Snakemake, an empty mapping changes nothing, not even a value of another type.
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value) if value else below
        else:
            merged[key] = value
    return merged


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML (or JSON) file.

    Raises `UserError` with line and column of a syntax error, and for a key that stands twice in one mapping, of which
    plain YAML readers silently take the last.
    """
    path, text = Path(path), ""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
        json.dumps(value, default=str)  # raises ValueError for an alias within its own anchor
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run where config/ is, or give --config FOLDER") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; expected a file of settings in YAML") from None
    except (yaml.YAMLError, ValueError) as e:
        raise UserError(f"{_short(path)}{_syntax_error(e, text)}") from None
    if not isinstance(value, dict):
        found = _FOUND.get(type(value), type(value).__name__)
        raise UserError(f"{_short(path)}: expected a mapping of settings (`name: value`), found {found}")
    return value


def command_line_problems(argv: Sequence[str]) -> list[str]:
    """Say what is wrong with `--configfile` and `--config` on Snakemake's command line, with file and line.

    Snakemake reads them before the workflow: it names no file, and answers some mistakes with a traceback. Both options
    take all words up to the next option, a target too.
    """
    problems, option = [], ""
    for word in argv[1:]:
        if word == "--":
            break
        if word.startswith("-"):
            option, _, word = word.partition("=")
        if not word:
            continue
        if option in ("--configfile", "--configfiles"):
            try:
                if not Path(word).exists():
                    raise UserError(
                        f"--configfile {word}: no such file; a target comes after `--`: ... -- all"
                    )
                load_yaml(Path(word))
            except UserError as e:
                problems.append(str(e))
        elif option in ("--config", "-C") and not re.match(r"[a-zA-Z_][\w-]*\w=", word):
            problems.append(
                f"--config {word}: expected NAME=VALUE, e.g. --config results=elsewhere 'train={{steps: 500}}'; "
                "a target comes after `--`: ... -- all"
            )
    return problems


def _syntax_error(error: Exception, text: str) -> str:
    """Return `, line 3, column 5: not valid YAML: what is wrong` on one line, as far as the error says where it is."""
    where, what = "", " ".join(str(error).split())
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "a mistake"
        if mark is not None:
            where = f", line {mark.line + 1}, column {mark.column + 1}"
        if error.context and error.context_mark is not None:
            what += f" ({error.context}, which begins in line {error.context_mark.line + 1})"
        if "'\\t'" in what:
            what += "; indent with spaces, not tabs"
    elif isinstance(error, json.JSONDecodeError):
        where, what = f", line {error.lineno}, column {error.colno}", error.msg
    elif isinstance(error, yaml.reader.ReaderError):
        where, what = f", line {text.count(chr(10), 0, error.position) + 1}", error.reason
    elif isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        where, what = f", line {line}", "not UTF-8 text; save the file as UTF-8"
    return f"{where}: not valid YAML: {what}"


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, and says where a value is that cannot be built (a date in month 13)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be one word", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"`{key.value}` stands in line {seen[key.value]} and again in line {line}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError) as e:
            problem = str(e) if isinstance(e, ValueError) else f"no value of the type {node.tag}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _depth(layer: Any, keys: tuple[Any, ...]) -> int:
    """Count the leading `keys`, each inside the one before, that a layer has."""
    for depth, key in enumerate(keys):
        known = range(len(layer)) if isinstance(layer, list) else layer if isinstance(layer, Mapping) else ()
        if key not in known:
            return depth
        layer = layer[key]
    return len(keys)


def _short(path: Path) -> str:
    """Return the path relative to the working directory, if it is inside."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
