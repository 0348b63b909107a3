"""Room for the last words: a few blocks kept on the results' disk, so that a run that filled it can still say so."""

import errno
import os
from pathlib import Path

RESERVE_BYTES = 1 << 16
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


RESERVE, PROBE = ".reserve", ".probe"


class Reserve:
    """A file in `folder` that is given back when it is time to write the verdict."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder, RESERVE)
        self._write(self.path)

    def release(self) -> str | None:
        """Give the room back. What the system said if there was no room but this one; else None."""
        probe = self.path.with_name(PROBE)
        said = self._write(probe)
        probe.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        return said

    @staticmethod
    def _write(path: Path) -> str | None:
        """Fill the file; what the system said if there was no room."""
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
