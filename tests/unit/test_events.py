import threading
from pathlib import Path

from dist3dgs.events import EventWriter, read_events


def test_many_writers_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def write(rank: int) -> None:
        writer = EventWriter(path, rank)
        for step in range(200):
            writer("step", step=step, text="x" * 500)
        writer.close()

    threads = [threading.Thread(target=write, args=(r,)) for r in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    events = list(read_events(path))
    assert len(events) == 800
    for rank in range(4):
        assert [e["step"] for e in events if e["rank"] == rank] == list(range(200))


def test_torn_and_foreign_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(
        b'{"event": "a"}\nnoise\n\xff\xfe\n[1]\n{"t": 1}\n'
        + b"[" * 100_000
        + b'\n{"event": "b"}\n{"event": "c", "st'
    )
    assert [e["event"] for e in read_events(path)] == ["a", "b"]


def test_a_missing_file_is_an_empty_diary(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none")) == []
