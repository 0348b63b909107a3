"""A small study in a folder of its own, run on the test cluster as a user would run it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cluster import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dist3dgs.files import write_json
from dist3dgs.scenes.pack import write_packed
from dist3dgs.slurm.site import SITE_FILE, read_site
from dist3dgs.slurm.site_init import render_profile
from plain import plain_bin

REPOSITORY = Path(__file__).resolve().parents[2]
#: Looks at the queue every two seconds: a test must not wait for what a study may.
TEST_PROFILE = {
    "dist3dgs-slurm-init-seconds-before-status-checks": 1,
    "seconds-between-status-checks": 2,
    "latency-wait": 5,
    "jobs": 20,
}
TEST_SITE = {
    "gpu_partition": "gpu",
    "cpu_partition": "cpu",
    "gpu_type": "h100",
    "cpus_per_gpu": 2,
    "mem_gib_per_gpu": 1.5,
    "max_mem_gib": 11.5,
    "ingest_cpus": 2,
    "ingest_mem_gib": 4,
    "ingest_runtime_min": 30,
    "runtime_min": 10,
    "max_runtime_min": 240,
    "poll_s": 2,
}
TRAIN = {
    "steps": 60,
    "sh_degree": 0,
    "eval_every": 1000,
    "eval_views": 1,
    "checkpoint_every": 20,
    "digest_every": 30,
    "log_every": 1,
    "lpips": False,
    "tensorboard": False,
}


class Study:
    """Project files, a tiny packed scene and a profile in `folder`; Snakemake is run there."""

    def __init__(self, folder: Path, cluster: Cluster, *, layouts: list[str], **options: Any) -> None:
        """options: train={}, site={}, profile={}, repeats=1: laid over the settings above."""
        self.folder, self.cluster = folder, cluster
        #: Scene and strategy, or workload and variant, that `point` and all that looks at one means.
        self.pair = "tiny/replicated"
        for name in ("Snakefile", "workflow", "config"):
            source = REPOSITORY / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)
        self._write_config(layouts, options.get("train", {}), options.get("repeats", 1))
        self._write_profile(options.get("site", {}), options.get("profile", {}))
        write_scene(folder / "data/tiny")

    def _write_config(self, layouts: list[str], train: Mapping[str, Any], repeats: int) -> None:
        path = self.folder / "config/config.yaml"
        config = yaml.safe_load(path.read_text())
        config |= {"scenes": ["tiny"], "layouts": layouts, "repeats": repeats}
        config["train"] = config["train"] | TRAIN | train
        config["hardware"] |= {"device": "cpu", "timeout_s": 300}
        path.write_text(yaml.safe_dump(config))
        scenes = {"scene_library": {"tiny": {"builtin": {}}}}
        (self.folder / "config/scenes.yaml").write_text(yaml.safe_dump(scenes))

    def _write_profile(self, site: Mapping[str, Any], profile: Mapping[str, Any]) -> None:
        account = {"account": "lab"} if self.cluster.accounting == "dbd" else {}
        path = self.folder / "profiles/slurm/config.yaml"
        path.parent.mkdir(parents=True)
        settings = {**account, **TEST_SITE, **site}
        read_site(settings)
        path.with_name(SITE_FILE).write_text(yaml.safe_dump(settings))
        value = yaml.safe_load(render_profile(Path("profiles/slurm", SITE_FILE)))
        path.write_text(yaml.safe_dump(value | TEST_PROFILE | profile))

    # -- running

    def start(self, *targets: str, path: Path | None = None) -> "subprocess.Popen[str]":
        """Snakemake in the background, with `path` first on PATH; its output goes to snakemake.log."""
        env = self.cluster.environment(os.environ | {"PYTHONUNBUFFERED": "1"})
        env["PATH"] = f"{plain_bin()}:{env['PATH']}"
        env["PATH"] = f"{path}:{env['PATH']}" if path else env["PATH"]
        with (self.folder / "snakemake.log").open("a") as log:
            # A shell's background jobs ignore Ctrl-C, and so would all that these tests start.
            heeding = ["env", "--default-signal=INT"]
            return subprocess.Popen(
                [*heeding, str(plain_bin() / "python"), "-m", "snakemake", "--profile", "profiles/slurm", *targets],
                cwd=self.folder, env=env, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip

    def run(self, *targets: str, timeout: float = 600, check: bool = True) -> int:
        process = self.start(*targets)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"snakemake still ran after {timeout:.0f} s:\n{self.log()}") from None
        assert not check or code == 0, self.log()
        return code

    def log(self) -> str:
        """The output of the terminal, then Snakemake's own logs."""
        logs = sorted(self.folder.glob(".snakemake/log/*.log"))
        return "\n".join([self.terminal(), *(path.read_text() for path in logs)])

    def terminal(self) -> str:
        """The output of the terminal."""
        path = self.folder / "snakemake.log"
        return path.read_text() if path.exists() else ""

    # -- looking

    def point(self, layout: str, repeat: int = 0) -> Path:
        return self.folder / f"results/{self.pair}/{layout}/r{repeat}"

    def target(self, layout: str, repeat: int = 0) -> str:
        return str((self.point(layout, repeat) / "record.json").relative_to(self.folder))

    def record(self, layout: str, repeat: int = 0) -> dict[str, Any]:
        return json.loads((self.point(layout, repeat) / "record.json").read_text())

    def attempts(self, layout: str) -> list[dict[str, Any]]:
        paths = sorted(self.point(layout).glob("attempts/*/launch.json"))
        return [json.loads(p.read_text()) for p in paths]

    def events(self, layout: str, kind: str | None = None) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.point(layout).glob("attempts/*/events.*jsonl")):
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            found += [e | {"attempt": int(path.parent.name)} for e in lines if kind in (None, e["event"])]
        return found

    def last_step(self, layout: str) -> int:
        return max((e["step"] for e in self.events(layout, "step")), default=0)

    def jobs(self, states: str = "all") -> list[tuple[int, str, str]]:
        """(id, state, comment) of this folder's jobs that the controller remembers."""
        text = self.cluster("squeue", "-h", "-t", states, "-o", "%i|%T|%Z|%k")
        rows = [line.split("|", 3) for line in text.splitlines()]
        return [(int(i), s, c) for i, s, z, c in rows if Path(z).resolve() == self.folder.resolve()]

    def wait(self, done: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := done():
                return value
            time.sleep(0.2)
        raise AssertionError(f"waited {seconds:.0f} s for {what}\n{self.log()[-3000:]}\n{self.jobs()}")


def write_scene(folder: Path, num_views: int = 12, width: int = 64, height: int = 48) -> None:
    """A packed scene as `ingest` leaves it: coloured blobs seen from a circle."""
    rng = np.random.default_rng(0)
    points = rng.normal(0, 0.4, (200, 3)).astype(np.float32)
    colors = rng.integers(40, 255, (200, 3), dtype=np.uint8)
    focal = 60.0
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    views, images = [], []
    for angle in np.linspace(0, 2 * np.pi, num_views, endpoint=False):
        c, s = np.cos(angle), np.sin(angle)
        view = np.eye(4)
        view[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
        view[2, 3] = 3.0
        views.append(view)
        images.append(_picture(points @ view[:3, :3].T + view[:3, 3], colors, camera, width, height))
    write_packed(
        folder / "scene.safetensors",
        name="tiny",
        view_names=[f"{i:03d}.jpg" for i in range(num_views)],
        is_test=np.arange(num_views) % 8 == 0,
        sizes=np.tile(np.array([[width, height]], np.int32), (num_views, 1)),
        images=images,
        viewmats=np.array(views),
        Ks=np.tile(camera, (num_views, 1, 1)),
        points=points,
        colors=colors,
        extent=3.3,
        normalisation=np.eye(4),
    )
    write_json(folder / "ingest.json", {"name": "tiny"})
    # Older than the packed scene: nothing is to be ingested.
    write_json(folder / "source.json", {"name": "tiny"})
    os.utime(folder / "source.json", (1, 1))


def _picture(seen: Any, colors: Any, camera: Any, width: int, height: int) -> Any:
    image = np.zeros((height, width, 3), np.uint8)
    pixels = (camera @ seen.T).T
    for (x, y, z), color in sorted(zip(pixels, colors, strict=True), key=lambda p: -p[0][2]):
        u, v = int(x / z), int(y / z)
        image[max(0, v - 1) : v + 2, max(0, u - 1) : u + 2] = color
    return image
