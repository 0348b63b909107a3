"""An srun that could not ask about its job is started again."""

import pytest

from dist3dgs.launch.supervisor import srun_found_no_controller
from dist3dgs.slurm.allocation import Allocation, Node

AWAY = """srun: error: Unable to confirm allocation for job 134: Unable to contact slurm controller (connect failure)
srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 134
"""


def test_an_srun_that_found_no_controller_is_told_from_other_ends(tmp_path):
    log = tmp_path / "train.log"
    assert not srun_found_no_controller(log)
    log.write_text(f"$ srun --overlap\n{AWAY}")
    assert srun_found_no_controller(log)
    log.write_text(
        f"$ srun --overlap\n{AWAY}node gpu01: interface ib0\nTraceback\nValueError\nsrun: error: gpu01\n"
    )
    assert not srun_found_no_controller(log)  # the next one began


@pytest.mark.parametrize(("answers", "starts"), [(True, 2), (False, 1)])
def test_such_an_srun_is_started_again(tmp_path, monkeypatch, answers, starts):
    from dist3dgs.config.matrix import spec_json
    from dist3dgs.config.models import Hardware, RunSpec, Strategy, TrainSettings
    from dist3dgs.launch import launcher

    spec = RunSpec(
        scene="s", strategy="t", layout="n2g1", repeat=0, seed=1, parallel=Strategy(), train=TrainSettings(),
        hardware=Hardware(device="cpu"),
    )  # fmt: skip
    nodes = tuple(Node(name=f"n{i}", address="127.0.0.1") for i in range(2))
    (tmp_path / "scene").touch()
    (tmp_path / "away").write_text(AWAY)
    script = f'cd "{tmp_path}"; echo >> starts; [ -e away ] && cat away >&2 && rm away && exit 1; echo else >&2; exit 2'
    monkeypatch.setattr(launcher.slurm_allocation, "current", lambda: Allocation(job_id=7, nodes=nodes))
    monkeypatch.setattr(launcher.slurm_allocation, "wait_for_controller", lambda job, patience_s: answers)
    monkeypatch.setattr(launcher.commands, "launch_argv", lambda *a, **k: ["sh", "-c", script])
    launcher.launch(spec_json(spec), tmp_path / "scene", tmp_path / "s/t/n2g1/r0")
    assert (tmp_path / "starts").read_text().count("\n") == starts
