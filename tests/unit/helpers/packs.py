"""A packed scene's digest, computed again from its bytes."""

import hashlib
import json
from pathlib import Path


def content_digest(path: Path) -> str:
    """Recompute the digest from every byte: differs from `PackedScene.digest` when the file was altered."""
    with Path(path).open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = f.read(length)
        stored = json.loads(header)["__metadata__"]["digest"].encode()
        content = hashlib.sha256(length.to_bytes(8, "little") + header.replace(stored, b"0" * 64, 1))
        while block := f.read(2**22):
            content.update(block)
    return content.hexdigest()
