"""Get the photographs of a scene, and ingest them.

`source.json`, between the two, says where the photographs are and what they are: a list of files with sizes, so that
it changes when they do.
"""

import json
from pathlib import Path
from typing import Any

from ..config.models import Scene
from ..config.naming import check_name, how_to_make
from ..config.published_scenes import download_spec
from ..errors import UserError
from ..files import write_json
from .builtin.scene import make_scene
from .download.fetch import fetch_scene
from .ingest import IngestSettings, IngestSource, ingest
from .listing import not_a_folder, scene_files

#: Sizes and sums of downloaded archives, beside the scenes they belong to; worth committing.
LOCK_FILE = Path("config", "scenes.lock.yaml")


def obtain(name: str, scene: Scene, out: Path) -> None:
    """Make, download or find the photographs of a scene and write `out` (source.json).

    What is made or downloaded goes into a folder beside `out`. Raises `UserError` naming what is missing.
    """
    out = Path(out)
    check_name(name, "scene")
    source: dict[str, Any] = {"scene": name, "images": None, "colmap": None, "truth": None}
    if scene.builtin is not None:
        folder = out.parent / "photographs"
        make_scene(folder, **scene.builtin.model_dump())
        source |= {"kind": "builtin", "images": str(folder / "images"), "truth": str(folder / "truth.json")}
    elif scene.download is not None:
        folder = fetch_scene(name, download_spec(scene.download), out.parent.parent, LOCK_FILE)
        source |= {"kind": "colmap", "colmap": str(folder), "images": None}
    elif scene.colmap is not None:
        source |= {"kind": "colmap", "colmap": scene.colmap, "images": scene.images, "truth": scene.truth}
    else:
        source |= {"kind": "images", "images": scene.images, "truth": scene.truth}
    images, colmap = (_folder(name, key, source[key]) for key in ("images", "colmap"))
    files = scene_files(images, colmap)
    if not files:
        folders = ", ".join(str(folder) for folder in (images, colmap) if folder is not None)
        raise UserError(f"scene {name}: no files in {folders}; put photographs (JPEG, PNG) there")
    source["files"] = [{"path": str(p), "bytes": p.stat().st_size} for p in files]
    write_json(out, source)
    print(f"{name}: {len(files)} files")


def ingest_scene(
    name: str, scene: Scene, source_json: Path, pack: Path, facts: Path, made_from: str | None = None
) -> None:
    """Ingest what `obtain` found.

    Args:
        pack, facts: scene.safetensors and ingest.json of one folder.
        made_from: digest of the settings and photographs, by which the workflow knows that the scene is up to date.
    """
    if pack.parent != facts.parent or (pack.name, facts.name) != ("scene.safetensors", "ingest.json"):
        raise UserError(
            f"--pack {pack} and --facts {facts}: expected FOLDER/scene.safetensors and FOLDER/ingest.json"
        )
    try:
        found = json.loads(Path(source_json).read_text(encoding="utf-8"))
        colmap, images, truth = (_path(found[key]) for key in ("colmap", "images", "truth"))
        if colmap is None and images is None:
            raise ValueError("it names neither photographs nor a model")
    except KeyError as e:
        raise UserError(
            f"{source_json}: not what `dist3dgs photographs` writes, it has no {e}; delete it"
            f"{how_to_make(source_json, ' and make it again: ')}"
        ) from None
    except (OSError, ValueError, TypeError) as e:
        raise UserError(
            f"{source_json}: cannot be read ({e}); delete it{how_to_make(source_json, ' and make it again: ')}"
        ) from None
    source = IngestSource(
        name=name,
        kind="images" if colmap is None else "colmap",
        path=colmap or images or Path(),
        images=None if colmap is None else images,
        truth=truth,
    )
    settings = IngestSettings(
        max_width_px=scene.max_width_px,
        downscale=scene.downscale,
        test_every=scene.test_every,
        sfm=scene.sfm,
    )
    report = ingest(source, pack.parent, settings)
    if made_from is not None:
        write_json(facts, report | {"made_from": made_from})


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


def _folder(name: str, key: str, value: str | None) -> Path | None:
    if value is None:
        return None
    if not (folder := Path(value)).is_dir():
        raise UserError(f"scene {name}: `{key}:` {not_a_folder(folder)}.")
    return folder
