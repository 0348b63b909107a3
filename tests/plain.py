"""This environment by a path that the Slurm plugin can use."""

import contextlib
import hashlib
import sys
import tempfile
from pathlib import Path


def plain_bin() -> Path:
    """This environment's bin folder by a path without a space.

    The plugin writes Python's path unquoted into the job script, so that a checkout in "my work/" could not submit.
    """
    folder = Path(sys.executable).parent
    if " " not in str(folder):
        return folder
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    link = Path(tempfile.gettempdir(), f"dist3dgs-env-{digest}")
    with contextlib.suppress(FileExistsError):  # of an earlier test, or of one beside this
        link.symlink_to(folder.parent)
    return link / folder.name
