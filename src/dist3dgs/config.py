"""Reading the config folder without Snakemake, for verbs run by hand."""

from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .matrix import Study

FILES = ("config.yaml", "scenes.yaml", "strategies.yaml")


def load_study(folder: Path) -> Study:
    """The study of a config folder, as the Snakefile reads it. Raises `UserError` naming the file."""
    raw: dict[str, Any] = {}
    for name in FILES:
        raw |= load_yaml(Path(folder, name))
    return Study.from_config(raw)


def load_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file. Raises `UserError` with line and column of a syntax error."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run where config/ is, or give --config FOLDER") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid YAML: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(value).__name__}")
    return value
