"""Dumps of torch's flight recorder: the last collectives of one rank.

NCCL's watchdog writes a pickle per rank (`TORCH_FR_DUMP_TEMP_FILE` and the rank), our ranks write the same content as
JSON with their rank and step. Keys as in torch's FlightRecorder.hpp, format version 2. A dump may come from anywhere:
pickles are never unpickled but read opcode by opcode, plain values alone.
"""

import json
import pickletools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..log_data import Added, LogData
from ..samples import Collective, RankTrace

FORMAT = "flight recorder"
#: A dump of 2000 collectives with stack traces has a few MB.
MAX_BYTES = 16 << 20
PICKLE_HEAD = (b"\x80\x02}", b"\x80\x02(", b"\x80\x02N")
MAX_RANKS = 1 << 20


class NotADump(ValueError):
    """The file is no dump, or one that asks for more than plain values."""


def sniff(head: str) -> bool:
    return head.lstrip().startswith("{") and '"comm_lib_version"' in head and '"pg_config"' in head


def sniff_bytes(head: bytes) -> bool:
    """Accept the first bytes of a pickled dump."""
    return head.startswith(PICKLE_HEAD) and b"pg_config" in head and b"version" in head


def add(path: Path, index: int, log: LogData) -> Added:
    """Add a rank's dump to the log's `flight`."""
    try:
        trace = read(path)
    except (NotADump, OSError) as e:
        return Added(f"not read: {e}")
    known = log.flight.get(trace.rank)
    if known is not None and trace.step is None:
        trace.step = known.step
    log.flight[trace.rank] = trace
    return Added()


def read(path: Path) -> RankTrace:
    """Read one dump, JSON or pickle. Raises `NotADump` if it is neither, too large, or not of plain values."""
    path = Path(path)
    with path.open("rb") as f:
        data = f.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise NotADump(f"larger than {MAX_BYTES >> 20} MiB")
    try:
        content = json.loads(data) if data.lstrip().startswith(b"{") else _plain_values(data)
    except NotADump:
        raise
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as e:  # broken, of whatever kind
        raise NotADump(f"{type(e).__name__}: {e}") from None
    if not isinstance(content, dict):
        raise NotADump("no mapping")
    rank = content.get("rank")
    named = re.search(r"(\d{1,7})(?:\.\w+)?$", path.name)
    if not isinstance(rank, int) or not 0 <= rank < MAX_RANKS:
        if named is None:
            raise NotADump("neither it nor its name states the rank")
        rank = int(named[1])
    step = content.get("step")
    dumped_ns = content.get("dumped_ns")
    trace = RankTrace(
        str(path),
        rank,
        step if isinstance(step, int) else None,
        dumped_ns if isinstance(dumped_ns, int) else None,
    )
    for entry in _mappings(content.get("entries")):
        _take(trace, entry)
    config = content.get("pg_config")
    for name, group in (config if isinstance(config, Mapping) else {}).items():
        if isinstance(group, Mapping):
            trace.members[str(name)] = [int(r) for r in re.findall(r"\d{1,7}", str(group.get("ranks")))]
    return trace


def _plain_values(data: bytes) -> Any:
    """Build the dicts, lists, tuples, texts, numbers, bools and None of a pickle, and nothing else.

    Interprets only the opcodes that make these, so that no file can name code, call it or claim memory.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def popped() -> list[Any]:
        begin = marks.pop()
        items = stack[begin:]
        del stack[begin:]
        return items

    arg: Any
    for opcode, arg, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name in _SCALARS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "APPENDS":
            items = popped()
            stack[-1].extend(items)
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "SETITEMS":
            items = popped()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "TUPLE":
            stack.append(tuple(popped()))
        elif name in _TUPLES:
            items = stack[-_TUPLES[name] :]
            del stack[-_TUPLES[name] :]
            stack.append(tuple(items))
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "STOP":
            break
        elif name not in ("PROTO", "FRAME"):
            raise NotADump(f"its opcode {name} makes more than plain values")
    (value,) = stack
    return value


_SCALARS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _mappings(entries: Any) -> Iterator[Mapping[str, Any]]:
    yield from (e for e in entries if isinstance(e, Mapping)) if isinstance(entries, list) else ()


def _take(trace: RankTrace, entry: Mapping[str, Any]) -> None:
    seq, group = entry.get("collective_seq_id"), entry.get("process_group")
    if entry.get("is_p2p") or not isinstance(seq, int):
        return
    names = group if isinstance(group, list | tuple) and group else ("",)
    created = entry.get("time_created_ns")
    trace.groups.setdefault(str(names[0])[:64], {})[seq] = Collective(
        seq,
        str(entry.get("profiling_name"))[:128].rpartition(":")[2],
        str(entry.get("input_sizes"))[:128],
        created if isinstance(created, int) else 0,
        entry.get("state") == "completed",
    )
