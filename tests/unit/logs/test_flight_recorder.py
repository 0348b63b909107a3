"""Dumps of torch's flight recorder: who is missing from which collective, and that a dump cannot run code."""

import json
import os
import pickle
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist3dgs.cli.logs import run_diagnose
from dist3dgs.diagnosis import diagnose
from dist3dgs.diagnosis.hang import find_hang, hang_words, stragglers
from dist3dgs.diagnosis.scan import scan
from dist3dgs.launch.commands import FLIGHT_ENTRIES, flight_recorder
from dist3dgs.logs.readers.flight_recorder import NotADump, read
from dist3dgs.logs.samples import RankTrace
from dist3dgs.records.build import judge, verdict_of_run
from dist3dgs.runs.attempts import FLIGHT
from dist3dgs.train.fault_handling import dump_flight_recorder
from tests.unit.helpers.evidence import healthy, phase, spec, start, step, timing, write_attempt


def entry(
    seq: int, op: str, *, done: bool, size: int = 59, late_s: float = 0.0, **changes: Any
) -> dict[str, Any]:
    """One collective as NCCL's process group records it."""
    return {
        "record_id": seq - 1, "pg_id": 0, "process_group": ("0", "default_pg"), "thread_name": "pt_main_thread",
        "thread_id": "1", "collective_seq_id": seq, "p2p_seq_id": 0, "op_id": seq, "profiling_name": f"nccl:{op}",
        "time_created_ns": int((1_700_000_000 + seq + late_s) * 1e9), "duration_ms": 0.25, "input_sizes": [[size]],
        "input_dtypes": ["Float"], "output_sizes": [[size]], "output_dtypes": ["Float"],
        "state": "completed" if done else "started", "time_discovered_started_ns": None,
        "time_discovered_completed_ns": None, "retired": done, "timeout_ms": 600_000, "is_p2p": False,
    } | changes  # fmt: skip


def dump(entries: list[dict[str, Any]], world: int = 4) -> dict[str, Any]:
    ranks = str(list(range(world)))
    return {
        "version": "2.10", "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": ranks}},
        "comm_lib_version": "2.29.3", "entries": entries,
        "pg_status": {"0": {"last_enqueued_collective": len(entries), "last_started_collective": 0}},
        "nccl_comm_state": {},
    }  # fmt: skip


def nccl_dumps(folder: Path, of_rank: dict[int, list[dict[str, Any]]], world: int = 4) -> list[Path]:
    """Write what NCCL's watchdog writes: a pickle of protocol 2 for each rank."""
    paths = [folder / f"{FLIGHT}{rank}" for rank in of_rank]
    for path, entries in zip(paths, of_rank.values(), strict=True):
        path.write_bytes(pickle.dumps(dump(entries, world), protocol=2))
    return paths


def reached(last: int, done: int, late_s: float = 0.0) -> list[dict[str, Any]]:
    ops = ("all_reduce", "all_gather", "_reduce_scatter_base")
    return [entry(i, ops[i % 3], done=i <= done, late_s=late_s) for i in range(1, last + 1)]


def traces_of(paths: list[Path]) -> dict[int, RankTrace]:
    return {t.rank: t for t in map(read, paths)}


def test_the_rank_that_is_missing_from_a_collective(tmp_path: Path) -> None:
    """Ranks on GPUs run ahead: those that wait have enqueued what comes after too."""
    paths = nccl_dumps(tmp_path, {0: reached(9, 6), 1: reached(6, 6), 2: reached(8, 6), 3: reached(9, 6)})
    hang = find_hang(traces_of(paths))
    assert hang is not None and (hang.seq, hang.op, hang.waiting, hang.missing) == (
        7,
        "all_gather",
        [0, 2, 3],
        [1],
    )
    verdict = diagnose(paths)
    assert (verdict.status, verdict.cause, verdict.rank) == ("failed", "collective_timeout", 1)
    assert (
        verdict.collective == hang and "rank 1 never began all_gather, number 7" in verdict.evidence[0].text
    )


def test_a_rank_without_a_dump_is_named(tmp_path: Path) -> None:
    hang = find_hang(traces_of(nccl_dumps(tmp_path, {r: reached(7, 6) for r in (0, 1, 3)})))
    assert hang is not None and (hang.seq, hang.missing, hang.silent) == (7, [], [2])
    assert "rank 2 left no dump of all_gather" in hang_words(hang)


def test_of_several_groups_the_one_whose_missing_rank_waits_nowhere(tmp_path: Path) -> None:
    """Rank 3 never comes; rank 2 waits for it, and ranks 0 and 1 for rank 2 in a larger group."""
    pair = {"process_group": ("7", "pair")}
    of_rank = {r: reached(6, 5) for r in (0, 1)} | {r: reached(5, 5) for r in (2, 3)}
    of_rank[2] += [entry(1, "all_gather", done=True, **pair), entry(2, "all_gather", done=False, **pair)]
    of_rank[3] += [entry(1, "all_gather", done=True, **pair)]
    hang = find_hang(traces_of(nccl_dumps(tmp_path, of_rank)))
    assert hang is not None and (hang.group, hang.seq, hang.waiting, hang.missing) == ("7", 2, [2], [3])


def test_ranks_in_different_collectives(tmp_path: Path) -> None:
    of_rank = {0: reached(6, 6), 1: reached(6, 6)}
    of_rank[0].append(entry(7, "all_reduce", done=False))
    of_rank[1].append(entry(7, "broadcast", done=False, size=3))
    hang = find_hang(traces_of(nccl_dumps(tmp_path, of_rank, world=2)))
    assert (
        hang is not None
        and hang.ops == {0: "all_reduce [[59]]", 1: "broadcast [[3]]"}
        and hang.culprits == []
    )
    assert "different collectives" in hang_words(hang)


def test_all_ranks_in_one_collective_that_does_not_end_accuses_nobody(tmp_path: Path) -> None:
    hang = find_hang(traces_of(nccl_dumps(tmp_path, {r: reached(7, 6) for r in range(4)})))
    assert hang is not None and hang.culprits == [] and len(hang.waiting) == 4
    assert "does not end" in hang_words(hang)


def test_a_rank_that_began_the_collective_after_another_had_dumped_was_missing_from_it(
    tmp_path: Path,
) -> None:
    """A stopped rank is woken to take its stacks: it goes on, and dumps what it has begun by then."""
    begun_s = {0: 7.0, 1: 15.0}  # gloo records no end of a collective
    for rank, at_s in begun_s.items():
        last = entry(7, "all_reduce", done=False, time_created_ns=int((1_700_000_000 + at_s) * 1e9))
        dumped_ns = int((1_700_000_000 + at_s + 8 - 7.9 * rank) * 1e9)
        content = dump([*reached(6, 0), last], world=2) | {"rank": rank, "step": 3, "dumped_ns": dumped_ns}
        (tmp_path / f"{FLIGHT}{rank}.json").write_text(json.dumps(content))
    hang = find_hang(traces_of(sorted(tmp_path.iterdir())))
    # Rank 1 began it a tenth of a second before the first dump.
    assert hang is not None and (hang.waiting, hang.culprits) == ([0, 1], [])

    content = json.loads((tmp_path / f"{FLIGHT}1.json").read_text())
    content["entries"][-1]["time_created_ns"] += int(0.2e9)
    (tmp_path / f"{FLIGHT}1.json").write_text(json.dumps(content))
    hang = find_hang(traces_of(sorted(tmp_path.iterdir())))
    assert hang is not None and (hang.seq, hang.waiting, hang.missing) == (7, [0], [1])


def test_dumps_of_ranks_that_did_not_hang_show_none(tmp_path: Path) -> None:
    paths = nccl_dumps(tmp_path, {r: reached(7, 7) for r in range(4)})
    assert find_hang(traces_of(paths)) is None and diagnose(paths).status == "unknown"


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"version": "2.10", "pg_config": {}, "entries": [Malicious()]}, protocol=2),
        b"\x80\x02}(U\x09pg_configcos\nsystem\n(S'touch pwned'\ntRU\x07versionNu.",
        b"\x80\x02}U\x09pg_configP0\ns.",
        pickle.dumps({"version": "2.10", "pg_config": {}, "entries": [{1}]}, protocol=4),
        b"\x80\x02}r\xff\xff\xff\x7f(X\x09\x00\x00\x00pg_configX\x07\x00\x00\x00versionQ.",
        pickle.dumps(dump(reached(3, 3)), protocol=2)[:-40],
        b'{"comm_lib_version": "", "pg_config": ',
        b"\x80\x02]q\x00.",
    ],
)
def test_a_pickle_that_names_code_is_refused(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{FLIGHT}0"
    path.write_bytes(data)
    with pytest.raises(NotADump):
        read(path)
    (tmp_path / "job.out").write_text("step 1\n")
    found = scan([path, tmp_path / "job.out"])
    assert not found.flight and not (tmp_path / "pwned").exists()


def test_odd_values_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace_3"
    odd = [
        {"collective_seq_id": "x"},
        7,
        entry(2, "all_reduce", done=True, process_group=None, time_created_ns="no"),
    ]
    path.write_bytes(pickle.dumps(dump(odd) | {"pg_config": {"0": 4}}, protocol=2))  # type: ignore[arg-type]
    trace = read(path)
    assert trace.rank == 3 and list(trace.groups[""]) == [2] and not trace.members


def hanging(rank: int, folder: str) -> None:
    """Two ranks, of which the second never comes to the fourth all-reduce."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"} | flight_recorder(Path(folder))
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=1), rank=rank, world_size=2)
    x = torch.ones(8)
    for _ in range(3):
        dist.all_reduce(x)
    if rank == 0:
        with pytest.raises(RuntimeError, match="Timed out waiting"):
            dist.all_reduce(x)
    else:
        time.sleep(2)
    dump_flight_recorder(Path(folder), rank, step=25)
    if rank == 0:
        dump = torch._C._distributed_c10d._dump_fr_trace  # as NCCL's watchdog writes it
        Path(folder, "pickled0").write_bytes(
            dump(includeCollectives=True, includeStackTraces=False, onlyActive=False)
        )


@pytest.mark.slow
def test_a_real_hang_of_two_ranks(tmp_path: Path) -> None:
    """Also tells when another torch has no such dump any more, or writes another format."""
    torch.multiprocessing.start_processes(hanging, (str(tmp_path),), nprocs=2, start_method="fork")
    ours = {r: tmp_path / f"{FLIGHT}{r}.json" for r in (0, 1)}
    hang = find_hang({r: read(path) for r, path in ours.items()})
    assert hang is not None
    assert (hang.seq, hang.op, hang.step) == (4, "all_reduce", 25)
    assert (hang.waiting, hang.missing, hang.silent) == ([0], [1], [])
    pickled = read(tmp_path / "pickled0")
    assert pickled.groups == read(ours[0]).groups and pickled.members == read(ours[0]).members


@pytest.mark.parametrize("used", [True, False])
def test_the_nccl_recorder_is_dumped_where_it_has_entries(
    used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c10d = torch._C._distributed_c10d
    nccl = dump(reached(3, 3)) if used else {"comm_lib_version": "2.29.3", "pg_config": {}}
    texts = {"_dump_nccl_trace_json": nccl, "_dump_fr_trace_json": dump(reached(2, 2))}
    for name, content in texts.items():
        text = json.dumps(content, separators=(",", ":")).encode()
        monkeypatch.setattr(c10d, name, lambda text=text, **options: text, raising=False)
    dump_flight_recorder(tmp_path, 1, step=None)
    assert max(read(tmp_path / f"{FLIGHT}1.json").groups["0"]) == (3 if used else 2)


def test_the_buffer_is_bounded_and_dumped_into_the_attempt(tmp_path: Path) -> None:
    names = flight_recorder(tmp_path)
    assert int(names["TORCH_FR_BUFFER_SIZE"]) == FLIGHT_ENTRIES <= 2000
    assert (
        names["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / FLIGHT)
        and names["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    )
    # The newest torch warns of the older names in every rank's log; a program of others may know these alone.
    assert "TORCH_NCCL_TRACE_BUFFER_SIZE" not in names
    assert flight_recorder(tmp_path, any_torch=True)["TORCH_NCCL_TRACE_BUFFER_SIZE"] == str(FLIGHT_ENTRIES)


def test_the_record_and_diagnose_name_the_missing_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {
        "type": "CollectiveTimeout",
        "message": "all_reduce",
        "traceback": "",
        "phase": "step",
        "step": 25,
    }
    events = [
        *(start(r, host=f"node{r}") for r in range(4)),
        phase("enter", "step", 1007.0),
        step(25, 1040.0),
    ]
    events += [{"t": 1050.0 + r, "rank": r, "event": "error", **error} for r in range(4)]  # even the late one
    launch = write_attempt(tmp_path, spec("n1g4"), events, status="failed", returncode=1)
    nccl_dumps(
        tmp_path / "attempts/000", {0: reached(9, 6), 1: reached(9, 6), 2: reached(6, 6), 3: reached(9, 6)}
    )
    (tmp_path / "attempts/000" / f"{FLIGHT}1.json").write_text(
        json.dumps({"rank": 1, "step": 26} | dump(reached(8, 6)))
    )
    failure = judge(launch).failure
    assert failure is not None and failure.collective is not None
    assert (failure.cause, failure.rank, failure.node) == ("collective_timeout", 2, "node2")
    assert (failure.collective.missing, failure.collective.step) == ([2], 26)
    assert failure.evidence[1].file == f"attempts/000/{FLIGHT}0"
    assert run_diagnose([launch], False, verdict_of_run=verdict_of_run) == 1
    assert (
        "collective: rank 2 never began all_gather, number 7 of group 0 at step 26" in capsys.readouterr().out
    )


def test_stragglers_by_their_own_time_per_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All ranks' steps are equally long; the slow one waits for nobody."""
    events = [e for e in healthy() if e["event"] not in ("timing", "comm")]
    events += [timing(rank, 70.0) for rank in (0, 1)]
    comm = {
        "t": 1096.0,
        "event": "comm",
        "phase": "step",
        "op": "all_reduce",
        "calls": 50,
        "bytes": 1,
        "s": 35.0,
    }
    events += [comm | {"rank": 0, "exposed_s": 35.0}, comm | {"rank": 1, "exposed_s": 5.0}]
    launch = write_attempt(tmp_path, spec(), events)
    (slow,) = judge(launch).stragglers
    assert (slow.rank, slow.node) == (1, "node1")
    assert slow.step_s == pytest.approx(65 / 50) and slow.others_s == pytest.approx(35 / 50)
    assert run_diagnose([launch], False, verdict_of_run=verdict_of_run) == 0
    assert (
        "straggler: rank 1 on node1 needs 1.3 s of its own per step, the others 700 ms"
        in capsys.readouterr().out
    )
    assert judge(write_attempt(tmp_path / "even", spec(), healthy())).stragglers == []


def test_stragglers_of_a_hung_run_come_late(tmp_path: Path) -> None:
    paths = nccl_dumps(
        tmp_path, {0: reached(9, 6), 1: reached(9, 6, late_s=0.4), 2: reached(9, 6), 3: reached(6, 6)}
    )
    (late,) = stragglers(None, traces_of(paths))
    assert late.rank == 1 and late.late_s == pytest.approx(0.4)
