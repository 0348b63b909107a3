"""One self-contained HTML page of a study (verdict, numbers, figures, renders, failures, provenance) and its LaTeX.

Everything is inlined (figures and photographs as data URIs, one style sheet); the page has no scripts and loads
nothing. All text from records, logs and configs is escaped by `markup`.
"""

import json
import time
from pathlib import Path
from typing import Any

from ..config.models import validate
from ..files import write_text


def write_report(
    out: Path,
    records: list[Path],
    figures_dir: Path,
    tables_dir: Path,
    ingest_jsons: list[Path],
    study: dict[str, Any],
) -> None:
    """Write the report of these records to `out`, and as LaTeX beside it (`report.tex` beside `report.html`).

    `figures_dir` holds `{name}.svg`, `tables_dir` runs.csv and points.csv; beside each record may lie `renders/`.
    `study`: see `study.StudyFacts`. A missing figure, render or ingest file is said to be missing; a missing table is a
    `UserError`.
    """
    from .content import Content
    from .latex import document
    from .page import page
    from .study import StudyFacts

    started = time.perf_counter()
    content = Content.load(
        sorted(map(Path, records)),
        Path(out).parent,
        Path(figures_dir),
        Path(tables_dir),
        [(p.parent.name, _json(p)) for p in sorted(map(Path, ingest_jsons))],
        validate(StudyFacts, study, "--study"),
    )
    write_text(Path(out).with_suffix(".tex"), document(content))
    write_text(Path(out), page(content, lambda: time.perf_counter() - started))


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object, or {} with the reason under `unreadable`: an old ingest must not cost the report."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        return {"unreadable": f"{path}: {e}"}
    return value if isinstance(value, dict) else {"unreadable": f"{path}: not a JSON object"}


__all__ = ["write_report"]
