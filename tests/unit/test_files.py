import errno
import json
import os
from pathlib import Path

import pytest

from dist3dgs.errors import UserError
from dist3dgs.files import replacing, sha256, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_real_full_disk_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write, as a full disk does."""
    code = (
        "import resource, signal, sys, pathlib; from dist3dgs.files import write_text;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "write_text(pathlib.Path(sys.argv[1]), 'x' * 10000)"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "big")], capture_output=True, text=True)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert not list(tmp_path.iterdir())


def test_json_refuses_what_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"psnr": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_json_and_digest(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    write_text(tmp_path / "abc", "abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf")


def test_processes_of_two_hosts_do_not_share_a_temporary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for host in ("node1", "node2"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        with replacing(tmp_path / "a") as temporary:
            temporary.touch()
            names.add(temporary.name)
    assert len(names) == 2


def test_a_device_or_pipe_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe"):
        write_text(tmp_path / "pipe", "x")
    assert [p.is_fifo() for p in tmp_path.iterdir()] == [True]
