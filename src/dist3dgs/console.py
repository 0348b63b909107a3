"""Copy what is printed to a log file."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from .errors import UserError

#: Set by a run of Snakemake whose terminal follows the study (`follow`): jobs print to their logs alone.
FOLLOWED = "DIST3DGS_FOLLOWED"


class _Tee:
    """A text stream whose output also goes to a file."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        self._copy.write(text)
        self._copy.flush()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def logged(path: Path | None) -> Iterator[None]:
    """Copy what is printed, and an uncaught traceback, to `path`. Raises `UserError` if it cannot be written.

    Where the terminal follows the study, it goes to `path` alone.
    """
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        f = path.open("w", encoding="utf-8")
    except OSError as e:
        raise UserError(f"--log {path}: cannot be written ({e.strerror}); name another file") from None
    with f:
        out, err = sys.stdout, sys.stderr
        alone = bool(os.environ.get(FOLLOWED))
        sys.stdout, sys.stderr = (f, f) if alone else (_Tee(out, f), _Tee(err, f))
        try:
            yield
        except Exception:
            f.write(traceback.format_exc())
            f.flush()
            raise
        finally:
            sys.stdout, sys.stderr = out, err
