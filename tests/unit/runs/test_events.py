import threading
from pathlib import Path

from dist3dgs.runs.events import EventTail, EventWriter, events_path, read_events


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


def test_each_node_has_a_file_and_they_are_read_by_time(tmp_path: Path) -> None:
    """Also where clocks jump back, and beside the one file of an earlier version."""
    lines = {
        events_path(tmp_path, "n1"): [(1, "a"), (4, "d"), (3, "e"), (7, "g")],
        events_path(tmp_path, "n2"): [(2, "b"), (6, "f")],
        tmp_path / "events.jsonl": [(3, "c")],
    }
    for path, events in lines.items():
        path.write_text("".join(f'{{"t": {t}, "event": "{name}"}}\n' for t, name in events))
    (tmp_path / "other.jsonl").write_text('{"t": 1, "event": "foreign"}\n')
    assert "".join(e["event"] for e in read_events(tmp_path)) == "abcdefg"


def test_the_tail_of_growing_files_gives_each_event_once(tmp_path: Path) -> None:
    tail = EventTail(tmp_path)
    assert tail.new() == []
    one, two = events_path(tmp_path, "n1"), events_path(tmp_path, "n2")
    one.write_text('{"t": 2, "event": "b"}\n{"t": 4, "ev')
    two.write_text('{"t": 1, "event": "a"}\n')
    assert [e["event"] for e in tail.new()] == ["a", "b"]
    with one.open("a") as f:
        f.write('ent": "c"}\n')
    assert [e["event"] for e in tail.new()] == ["c"] and tail.new() == []
    assert [e["event"] for e in EventTail(tmp_path, first_bytes=24).new()] == ["a", "c"]
