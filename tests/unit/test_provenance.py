"""Digests of code and data, and of the settings that decide a result."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dist3dgs import provenance
from dist3dgs.matrix import FREE_SETTINGS, load_study, run_digest, spec_json
from dist3dgs.names import Point
from dist3dgs.provenance import content_digest, imported_code_digest, scene_digest
from dist3dgs.resume import differences, identity
from dist3dgs.scenes.pack import write_packed
from dist3dgs.spec import Hardware, RunSpec, TrainSettings


def test_modules_are_followed_through_their_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "dist3dgs"
    (package / "pages").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "shared.py": "import json",
        "lonely.py": "",
        "pages/__init__.py": "",
        "pages/one.py": "def draw():\n    from ..shared import x\n    from . import two",
        "pages/two.py": "",
        "pages/style.css": "",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    monkeypatch.setattr(provenance, "PACKAGE", package)

    def changes(name: str) -> bool:
        before = imported_code_digest("pages.one")
        (package / name).write_text(files[name] + "\n# edited")
        return imported_code_digest("pages.one") != before

    assert [name for name in files if changes(name)] == [
        name for name in files if name not in ("lonely.py", "__init__.py")
    ]


def test_content_decides_and_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, cache = [tmp_path / "a.jpg", tmp_path / "b.jpg"], tmp_path / "digests.json"
    for path in files:
        path.write_bytes(b"1" * 100)
    first = content_digest(files, cache)
    read = []
    monkeypatch.setattr(provenance, "sha256", lambda path: read.append(path.name) or "same")
    assert content_digest(files, cache) == first and read == []
    monkeypatch.undo()
    os.utime(files[0], (1, 1))
    assert content_digest(files, cache) == first
    files[0].write_bytes(b"2" * 100)
    assert content_digest(files, cache) != first
    files[0].write_bytes(b"1" * 100)
    cache.write_text("[damaged")
    assert content_digest(files, cache) == first
    assert content_digest(files, tmp_path / "no folder" / "digests.json") == first
    assert content_digest(files[:1], cache) != first


def test_the_digest_of_a_packed_scene_is_read_from_its_header(tmp_path: Path) -> None:
    pack = tmp_path / "scene.safetensors"
    digest = write_packed(
        pack, name="tiny", view_names=["0.jpg"], is_test=np.array([False]), sizes=np.array([[4, 3]], np.int32),
        images=[np.zeros((3, 4, 3), np.uint8)], viewmats=np.eye(4)[None], Ks=np.eye(3)[None],
        points=np.zeros((1, 3), np.float32), colors=np.zeros((1, 3), np.uint8), extent=1.0, normalisation=np.eye(4),
    )  # fmt: skip
    assert scene_digest(pack) == digest
    pack.write_bytes(b"no scene")
    assert scene_digest(pack) is None and scene_digest(tmp_path / "absent") is None


def test_free_settings_are_settings_and_change_no_run(repository: Path) -> None:
    spec = load_study(repository / "config").spec(Point.parse("builtin", "replicated", "n1g2"))
    models = {"train": TrainSettings, "hardware": Hardware}
    value = json.loads(spec_json(spec))
    for part, names in FREE_SETTINGS.items():
        assert set(names) <= set(models[part].model_fields)
        for name in names:
            value[part][name] = 7 if value[part][name] != 7 else 8
    value["train"]["tensorboard"] = not spec.train.tensorboard
    other = RunSpec.model_validate(value)
    assert run_digest(spec_json(other)) == run_digest(spec_json(spec))
    assert differences(identity(other, "d"), identity(spec, "d")) == [], (
        "a checkpoint is resumed all the same"
    )
    value["train"]["eval_every"] += 1
    assert run_digest(json.dumps(value)) != run_digest(spec_json(spec))
