"""The report as LaTeX: the same verdict and tables, nothing in it is a command, and pdflatex takes it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dist3dgs import figures
from dist3dgs.analysis.tables import read_table, tabulate
from dist3dgs.analysis.typeset import tex
from dist3dgs.report import write_report
from dist3dgs.report.verdict import verdict
from tests.unit.helpers.records import make_record, write_records

HOSTILE = r"\input{/etc/passwd} \write18{ls} $x_1^2$ 50 % & # ~ é λ 漢 `a` <b> {"


def has_latex() -> bool:
    """Return whether pdflatex and the packages of the report are installed."""
    if not shutil.which("pdflatex") or not shutil.which("kpsewhich"):
        return False
    found = [
        subprocess.run(["kpsewhich", f"{p}.sty"], capture_output=True) for p in ("booktabs", "longtable")
    ]
    return all(f.returncode == 0 for f in found)


def write(folder: Path, records, draw=()) -> str:
    paths = write_records(folder / "results", records)
    tables = folder / "tables"
    tabulate(paths, tables / "runs.csv", tables / "points.csv")
    for name in draw:
        figures.draw(name, tables / "runs.csv", tables / "points.csv", paths, folder / "my_figures" / name)
    write_report(folder / "report/report.html", paths, folder / "my_figures", tables, [], {})
    return (folder / "report/report.tex").read_text(encoding="utf-8")


def study():
    records = [make_record(s, layout=x) for s in ("one_scene", "two") for x in ("n1g1", "n1g2")]
    return [*records, make_record("two", layout="n1g4", status="failed", evidence=HOSTILE, remedy=HOSTILE)]


@pytest.mark.slow
def test_it_has_the_verdict_tables_and_figures_of_the_page(tmp_path):
    text = write(tmp_path, study(), draw=("speedup",))
    first = verdict(read_table(tmp_path / "tables/points.csv"))[0]
    assert tex(first) in text
    assert text.count(r"\begin{longtable}") == 4, "time, scaling and quality, versus one GPU, over scenes"
    assert r"\includegraphics" in text and "../my_figures}/speedup.pdf" in text
    assert "Figure memory has not been drawn" in text
    assert r"one\_scene" in text and r"\textbf{failed: killed}" in text


def test_text_of_logs_is_no_command(tmp_path):
    text = write(tmp_path, study())
    assert r"\input{/etc" not in text and r"\write18" not in text
    assert r"\textbackslash{}input\{/etc/passwd\}" in text


def test_without_records_it_says_so(tmp_path):
    text = write(tmp_path, [])
    assert "No run has left a record yet" in text and r"\end{document}" in text


@pytest.mark.skipif(not has_latex(), reason="pdflatex with booktabs is not installed")
@pytest.mark.parametrize("records", [[], study()], ids=["none", "some"])
@pytest.mark.slow
def test_plain_pdflatex_compiles_it(tmp_path, records):
    write(tmp_path, records, draw=("speedup", "memory") if records else ())
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
    done = subprocess.run(
        command,
        cwd=tmp_path / "report",
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report/report.pdf").stat().st_size > 5000
    assert "alignment" not in "".join(x for x in done.stdout.splitlines() if x.startswith("Overfull"))
