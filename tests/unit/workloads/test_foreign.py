"""The shipped entries of trainers of others, with stand-ins at the process layout that the real ones expect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist3dgs.config.matrix import load_study
from dist3dgs.config.models import Hardware
from dist3dgs.config.naming import Layout, Point
from dist3dgs.config.workloads import WorkloadSpec
from dist3dgs.launch.commands import choose_port
from dist3dgs.workloads import process
from dist3dgs.workloads.figures_of_merit import Found, find

STANDIN = Path(__file__).parents[1] / "helpers/foreign.py"
#: The real program's words in a template -> the stand-in's.
PROGRAMS = {
    "{clone}/examples/simple_trainer.py": ["gsplat"],
    "{bin}/ns-train": ["nerfstudio"],
    "{bin}/ns-eval": ["evaluate"],
    "{clone}/train.py": ["grendel"],
}
EXPORTED = ("sparse/0/cameras.bin", "sparse/0/images.bin", "sparse/0/points3D.bin", "images/00000.png")


def spec(repository: Path, name: str, layout: str, data: Path) -> WorkloadSpec:
    """The shipped entry's, on `data`, with the stand-in in the place of the program."""
    made = load_study(repository / "config").spec(Point.named(f"{name}/default/{layout}"))
    assert isinstance(made, WorkloadSpec)

    def replaced(words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        words = words and tuple(word for word in words if word != "{python}")
        return words and ("{python}", str(STANDIN), *PROGRAMS[words[0]], *words[1:])

    app = made.train.model_copy(
        update={
            "application": replaced(made.train.application),
            "evaluation": replaced(made.train.evaluation),
            "data": str(data),
            "images": 300,
        }
    )
    return made.model_copy(update={"train": app, "hardware": Hardware(device="cpu")})


def run(repository: Path, folder: Path, name: str, layout: str) -> tuple[WorkloadSpec, Found]:
    """Run every process of a layout as torchrun would, here, and read what they left."""
    data, attempt = folder / "data", folder / "attempts/000"
    attempt.mkdir(parents=True)
    for file in EXPORTED:
        (data / file).parent.mkdir(parents=True, exist_ok=True)
        (data / file).write_bytes(b"")
    for split in ("train", "val", "test"):
        (data / f"{split}_list.txt").write_text("00000.png\n")
    (data / "export.json").write_text(json.dumps({"digest": "d" * 64}))
    made = spec(repository, name, layout, data)
    (attempt / "launch.json").write_text(json.dumps({"spec": made.model_dump(mode="json")}))
    nodes, per_node = made.started.nodes, made.started.workers_per_node
    each = per_node if made.train.launch == "rank" else 1
    argv = [
        sys.executable,
        "-m",
        "dist3dgs.workloads.process",
        "--out",
        str(folder),
        "--events",
        str(attempt),
    ]
    port = str(choose_port(os.getpid()))
    started = []
    for rank in range(nodes * each):
        told = {
            "RANK": rank,
            "LOCAL_RANK": rank % each,
            "GROUP_RANK": rank // each,
            "WORLD_SIZE": nodes * each,
        }
        environ = os.environ | {k: str(v) for k, v in told.items()}
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", process.PORT: port}
        started.append(
            subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for one in started:
        assert one.wait(60) == 0, one.communicate()[0]
    out = folder / process.OUTPUT
    return made, find(made.criteria, process.output_paths(attempt), out, Layout.parse(layout).world_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "values"),
    [
        (
            "gsplat",
            "n1g2",
            {
                "psnr": 25.125,
                "ssim": 0.8123,
                "lpips": 0.201,
                "num_gaussians": 2001,
                "train_s": 11.5,
                "peak_gpu_gib": 1.5,
            },
        ),
        ("nerfstudio", "n2g1", {"psnr": 24.5, "ssim": 0.79, "lpips": 0.22, "iteration_s": 0.02}),
        (
            "grendel",
            "n1g2",
            {"psnr": 29.30947494506836, "train_s": 443.026, "images_per_s": 15.8, "peak_gpu_gib": 3.5},
        ),
    ],
)
def test_an_entry_runs_its_program_and_reads_it(
    repository: Path, tmp_path: Path, name: str, layout: str, values: dict[str, float]
) -> None:
    made, found = run(repository, tmp_path, name, layout)
    assert found.missing == {} and found.unmet == []
    assert found.values == pytest.approx(values)
    assert made.num_steps == 300 // made.started.world_size
    assert made.train.test_every == 8 and made.criteria.differences
    if name == "gsplat":  # a rank without its file leaves no sum of the others
        outputs = process.output_paths(tmp_path / "attempts/000")
        found = find(made.criteria, outputs, tmp_path / process.OUTPUT, made.started.world_size + 1)
        assert "rank2" in found.missing["num_gaussians"] and "psnr" in found.values
