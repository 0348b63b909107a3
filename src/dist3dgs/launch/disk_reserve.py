"""A few blocks reserved on the results' disk, so that a run that filled it can still write its summary."""

import errno
import os
from pathlib import Path

RESERVE_BYTES = 1 << 16
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


RESERVE, PROBE = ".reserve", ".probe"


class Reserve:
    """A file in `folder` that is deleted before the summary is written."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder, RESERVE)
        self._write(self.path)

    def release(self) -> str | None:
        """Delete the file; return the system's message if the disk was full without it, else None."""
        probe = self.path.with_name(PROBE)
        message = self._write(probe)
        probe.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        return message

    @staticmethod
    def _write(path: Path) -> str | None:
        """Fill the file; return the system's message if the disk is full, else None."""
        try:
            with path.open("wb") as f:
                f.write(bytes(RESERVE_BYTES))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            if e.errno not in FULL:
                raise
            return f"OSError: [Errno {e.errno}] {e.strerror}: {path.parent}"
        return None
