"""The child process of `sfm.run_sfm`: python -m dist3dgs.scenes.sfm_worker request.json

With --camera-models it prints the camera models that the installed COLMAP knows, for `cameras.installed_models`.

With `export` the only module that imports pycolmap. It is given checked photographs only, and leaves sparse/N/ and
reply.json.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pycolmap

SEED = 0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
#: COLMAP's guess for a lens of unknown focal length (ImageReaderOptions.default_focal_length_factor).
DEFAULT_FOCAL_FACTOR = 1.2


def register_images(database_path: str, photos: list[dict[str, Any]], camera_model: str) -> None:
    """Write cameras and images in the order of their names: ids then do not depend on which thread finishes first."""
    database = pycolmap.Database.open(database_path)
    cameras: dict[str, int] = {}
    for photo in photos:
        if photo["camera"] not in cameras:
            width, height = photo["width_px"], photo["height_px"]
            focal = photo["focal_px"] or DEFAULT_FOCAL_FACTOR * max(width, height)
            model = getattr(pycolmap.CameraModelId, camera_model)
            camera = pycolmap.Camera.create_from_model_id(1, model, focal, width, height)
            camera.has_prior_focal_length = photo["focal_px"] is not None
            cameras[photo["camera"]] = database.write_camera(camera)
        database.write_image(pycolmap.Image(name=photo["name"], camera_id=cameras[photo["camera"]]))
    database.close()


def extract(database: str, images: str, names: list[str], settings: dict[str, Any]) -> None:
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    options.num_threads = settings["num_threads"]
    options.max_image_size = settings["max_image_px"]
    options.sift.max_num_features = settings["num_features"]
    pycolmap.extract_features(
        database,
        images,
        image_names=names,
        camera_mode=pycolmap.CameraMode.PER_IMAGE,  # of no effect: every image has its camera already
        extraction_options=options,
        device=pycolmap.Device.cpu,
    )


def match(database: str, settings: dict[str, Any]) -> None:
    matching = pycolmap.FeatureMatchingOptions()
    matching.use_gpu = False
    matching.num_threads = settings["num_threads"]
    geometry = pycolmap.TwoViewGeometryOptions()
    geometry.ransac.random_seed = SEED
    if settings["matcher"] == "exhaustive":
        pycolmap.match_exhaustive(
            database, matching_options=matching, verification_options=geometry, device=pycolmap.Device.cpu
        )
    else:
        pairing = pycolmap.SequentialPairingOptions()
        pairing.overlap = settings["sequential_overlap"]
        pycolmap.match_sequential(
            database,
            matching_options=matching,
            pairing_options=pairing,
            verification_options=geometry,
            device=pycolmap.Device.cpu,
        )


def reconstruct(database: str, images: str, output: Path, settings: dict[str, Any]) -> None:
    options = pycolmap.IncrementalPipelineOptions()
    num_threads = 1 if settings["reproducible"] else settings["num_threads"]
    options.num_threads = options.mapper.num_threads = num_threads
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = SEED
    options.min_model_size = 3
    output.mkdir()
    pycolmap.incremental_mapping(database, images, str(output), options=options)


def set_limits(memory_gib: float) -> None:
    """Limit this process's memory, turn core files off, and have it end with its parent."""
    num_bytes = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it died before we asked
        sys.exit(1)


def camera_models() -> list[tuple[int, str, int]]:
    """Return number, name and number of parameters of every camera model."""
    models = []
    for name, model in pycolmap.CameraModelId.__members__.items():
        if int(model) >= 0:  # not INVALID
            camera = pycolmap.Camera.create_from_model_id(1, model, 1.0, 2, 2)
            models.append((int(model), name, len(camera.params)))
    return models


def main(request_path: Path) -> None:
    request = json.loads(request_path.read_text())
    set_limits(request["settings"]["memory_gib"])
    work, images, settings, photos = (
        Path(request["work"]),
        request["images"],
        request["settings"],
        request["photos"],
    )
    database = str(work / "database.db")
    pycolmap.set_random_seed(SEED)
    register_images(database, photos, settings["camera_model"])
    stages = {
        "extract": lambda: extract(database, images, [photo["name"] for photo in photos], settings),
        "match": lambda: match(database, settings),
        "map": lambda: reconstruct(database, images, work / "sparse", settings),
    }
    timings_s = {}
    for stage, run in stages.items():
        (work / "stage").write_text(stage)
        start = time.monotonic()
        run()
        timings_s[stage] = time.monotonic() - start
    reply = {
        "timings_s": timings_s,
        "versions": {"pycolmap": pycolmap.__version__, "colmap": pycolmap.COLMAP_version},
    }
    (work / "reply.json").write_text(json.dumps(reply))


if __name__ == "__main__":
    if sys.argv[1] == "--camera-models":
        print(json.dumps(camera_models()))
        sys.exit()
    main(Path(sys.argv[1]))
