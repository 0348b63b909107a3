"""What a job was given, as scontrol and squeue print it."""

import pytest

from dist3dgs.slurm import allocation
from dist3dgs.slurm.allocation import read


@pytest.mark.parametrize(
    ("job", "gres", "gpus"),
    [
        ("TresPerNode=gres/gpu:h100:4", "N/A", 4),
        ("TresPerNode=gres:gpu:a100-sxm4-80gb:2", "N/A", 2),
        ("TresPerJob=gres:gpu:8 TRES=cpu=2,mem=1G,node=2,billing=2,gres/gpu=8", "N/A", 4),
        ("AllocTRES=cpu=2,node=2,gres/gpu=8,gres/gpu:a100=8 ReqTRES=cpu=2", "N/A", 4),
        ("TRES=cpu=2,node=2,gres/gpu=5", "N/A", 3),  # unevenly: no layout fits
        ("TRES=cpu=2,mem=1G,node=2", "N/A", 0),
        ("", "gpu:2", 2),
    ],
)
def test_gpus_of_an_allocation(monkeypatch, job, gres, gpus):
    """As scontrol 22.05 and later print them."""
    answers = {
        "squeue": f"n[1-2]|gpu|10:00|{gres}",
        "node": "NodeName=n1 NodeAddr=127.0.0.1\nNodeName=n2 NodeAddr=127.0.0.1",
        "job": f"JobId=7 NumNodes=2 NumCPUs=2 {job}",
    }
    monkeypatch.setattr(
        allocation, "slurm", lambda *argv: answers[argv[0] if argv[0] == "squeue" else argv[3]]
    )
    assert read(7).gpus_per_node == gpus
