"""Every rule on a log written for it, every cause in several wordings, and what must not be taken for a cause."""

# ruff: noqa: E501 (lines of logs are as long as they are)

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from dist3dgs.cli.logs import troubleshooting
from dist3dgs.diagnosis import diagnose
from dist3dgs.diagnosis.rules import RULES, Hit, Tier
from dist3dgs.diagnosis.scan import scan
from dist3dgs.runs.causes import CAUSES
from tests.unit.helpers.bounded import ends_within

FOLDER = Path(__file__).parents[2] / "data" / "logs"
INDEX = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
#: Made of more than text lines; tested in test_own_run.py.
NOT_BY_TEXT = {"killed-by-signal"}


def cause_of(name: str) -> str:
    """Return the folder's name: a cause, or `ok`."""
    return name.partition("/")[0]


def test_the_index_has_every_log() -> None:
    assert set(INDEX) == {str(f.relative_to(FOLDER).with_suffix("")) for f in FOLDER.glob("*/*.log")}


@pytest.mark.parametrize("name", sorted(INDEX))
def test_verdict_and_the_line_that_proves_it(name: str) -> None:
    want = INDEX[name]
    verdict = diagnose([FOLDER / f"{name}.log"])
    assert (verdict.status, verdict.cause or "ok") == (want["status"], cause_of(name))
    if want["evidence"]:
        assert any(want["evidence"] in e.text for e in verdict.evidence), verdict.evidence
    for e in verdict.evidence:
        assert e.line is not None
        written = (FOLDER / f"{name}.log").read_text(encoding="utf-8").splitlines()[e.line - 1]
        assert e.text in written.strip() or e.text.startswith(written.strip()[:900])


@cache
def every_hit() -> list[Hit]:
    return [h for f in sorted(FOLDER.glob("*/*.log")) for h in scan([f]).hits]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_each_rule_takes_a_line_of_a_fixture(rule) -> None:
    if rule.name in NOT_BY_TEXT:
        pytest.skip("not found by text alone")
    hits = [h for h in every_hit() if h.rule is rule]
    assert hits


def test_every_cause_has_a_rule_or_is_made_of_numbers() -> None:
    assert set(CAUSES) == {r.cause for r in RULES}


def test_every_cause_of_text_is_met_in_two_wordings() -> None:
    counts = Counter(map(cause_of, INDEX))
    few = {c for c in CAUSES if counts[c] < 2} - {"killed", "misconfiguration"}
    assert not few
    assert len(INDEX) >= 100


def test_rules_are_written_for_people() -> None:
    assert len({r.name for r in RULES}) == len(RULES)
    for r in RULES:
        assert r.looks and r.why and r.remedy and r.patterns
        assert r.tier in Tier


def test_troubleshooting_is_the_table(repository: Path) -> None:
    written = (repository / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert written == troubleshooting(), "run: python -m dist3dgs.cli.logs docs/troubleshooting.md"


def test_root_is_the_rank_that_failed_first_not_the_ranks_that_noticed() -> None:
    verdict = diagnose([FOLDER / "code_error/behind-rendezvous.log"])
    assert verdict.cause == "code_error" and verdict.rank == 0 and verdict.node == "gpu01.cluster.local"
    assert any(r.cause == "rendezvous" for r in verdict.ruled_out)


def test_half_of_a_job_asks_for_the_other_half_and_reads_it_where_it_is(tmp_path: Path) -> None:
    out = tmp_path / "gs_4711.out"
    out.write_text("Job: 4 GPU\n")
    verdict = diagnose([out])
    assert (verdict.status, verdict.cause) == ("unknown", "unknown")
    assert any("gs_4711.err (not found)" in text for text in verdict.looked_for)
    assert verdict.remedy is not None and verdict.remedy.startswith("Give also gs_4711.err.")
    assert any(text.startswith("gpu_oom:") for text in verdict.looked_for)
    out.write_text("Training Complete!\n")
    assert diagnose([out]).status == "ok"
    err = tmp_path / "gs_4711.err"
    err.write_text('Traceback (most recent call last):\n  File "t.py", line 3, in f\n    d[k]\nKeyError: 1\n')
    verdict = diagnose([out])
    assert (verdict.cause, verdict.evidence[0].file) == ("code_error", str(err))
    assert any(str(err) in note and "other half" in note for note in verdict.notes)


def test_nodes_logs_in_separate_files(tmp_path: Path) -> None:
    """The node that lost its rendezvous is not the root; the other one's traceback is."""
    lost = tmp_path / "node1.log"
    lost.write_text(
        "[2024-06-12 20:31:20,001] torch.distributed.elastic.rendezvous.dynamic_rendezvous: [INFO] waiting\n"
        "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d store has failed.\n"
    )
    verdict = diagnose([lost, FOLDER / "code_error/behind-rendezvous.log"])
    assert verdict.cause == "code_error"


def test_errors_while_being_stopped_are_echoes() -> None:
    verdict = diagnose([FOLDER / "time_limit/steps.log"])
    assert verdict.cause == "time_limit" and verdict.node == "nc-17" and verdict.phase == "step"


def test_patterns_take_linear_time() -> None:
    """Lines made to make regular expressions backtrack; a pattern that does would go on for hours."""
    from dist3dgs.logs.readers import elastic, epochs, gsplat, nerfstudio, sacct, slurm
    from dist3dgs.logs.step_formats import FORMATS

    hostile = ["a" * 4000, "x: " * 1300, "File " * 800, "1/1 [" * 800, "nan " * 1000, "(" * 4000, "error: " * 570, "No such " * 500, " " * 4000]  # fmt: skip
    compiled = [p for r in RULES for p in (*r.patterns, *([r.unless] if r.unless else []))]
    compiled += [p.pattern for m in (nerfstudio, gsplat, elastic, slurm, sacct, epochs) for p in m.FACTS]
    for pattern in compiled:
        for text in hostile:
            with ends_within(cpu_s=10, what=pattern.pattern):
                pattern.search(text)
    for fmt in FORMATS:
        for text in hostile:
            with ends_within(cpu_s=10, what=fmt.name):
                fmt.pattern.findall(text.encode())


def test_evidence_is_safe_to_show(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(
        b"\x1b]0;title\x07\x1b[31mRuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB \x1b[2J"
        b"<script>alert(1)</script> $(rm -rf ~) \xe2\x80\xae\x9b\x00\n"
    )
    (e,) = diagnose([log]).evidence
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", e.text)
    assert "<script>" in e.text  # text stays text; the report escapes it
