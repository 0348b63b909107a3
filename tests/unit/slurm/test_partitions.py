"""Reading clusters as they are: mixed partitions, slices, broken nodes, accounts of other clusters.

Slurm's commands are scripts that print what the real ones print.
"""

import os
from pathlib import Path

import pytest

from dist3dgs.config.naming import Layout
from dist3dgs.slurm import partition_choice
from dist3dgs.slurm.partitions import read_partitions
from dist3dgs.slurm.site import read_site
from dist3dgs.slurm.site_init import inspect

CONFIG = """Configuration data as of 2026-11-25T01:00:00
ClusterName             = alpha
EnforcePartLimits       = ALL
MinJobAge               = 300 sec
PreemptType             = (null)
AccountingStorageType   = accounting_storage/slurmdbd"""
TAKEN = "sbatch: Job 1 to start at 2030-11-25T10:00:00 using 8 processors on nodes gpu01 in partition gpu"


class Fake:
    """Slurm's commands in a folder that is first on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        self.script("squeue", "true")
        self.script("sbatch", f"echo '{TAKEN}' >&2")
        self.script("sacctmgr", "echo 'Slurm accounting storage is disabled' >&2; exit 1")

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def cluster(self, sinfo: str, partitions: str = "") -> None:
        """`partitions`: lines of `scontrol -o show partition`; those that are missing have no limits."""
        lines = [line.strip() for line in sinfo.strip().splitlines()]
        blocks = [line.strip() for line in partitions.strip().splitlines() if line.strip()]
        named = {b.split()[0].removeprefix("PartitionName=") for b in blocks}
        for name in dict.fromkeys(line.split("|")[0].rstrip("*") for line in lines):
            if name not in named:
                blocks.append(
                    f"PartitionName={name} AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=NO "
                    "MaxNodes=UNLIMITED MaxCPUsPerNode=UNLIMITED PriorityTier=1 PreemptMode=OFF MaxMemPerNode=UNLIMITED"
                )
        text = "\n".join
        self.script("sinfo", f"cat <<'END'\n{text(lines)}\nEND")
        self.script(
            "scontrol",
            f"case \"$*\" in *config*) cat <<'END'\n{CONFIG}\nEND\n;;\n*) cat <<'END'\n{text(blocks)}\nEND\n;; esac",
        )

    def accounts(self, associations: str, qos: str = "normal|", default: str = "root|") -> None:
        self.script(
            "sacctmgr",
            f"case \"$*\" in\n*assoc*cluster=alpha*) printf '{associations}' ;;\n"
            f"*assoc*) printf 'elsewhere|||normal|\\n' ;;\n*qos*) printf '{qos}' ;;\n*) printf '{default}\\n' ;; esac",
        )


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    folder = tmp_path / "bin"
    folder.mkdir()
    return Fake(folder, monkeypatch)


MIXED = """
    batch|up|2-00:00:00|1000|128|512000|(null)|idle
    batch|up|2-00:00:00|2|64|1000000|gpu:a100:4(S:0-1)|mixed
    gpu|up|1-00:00:00|38|64|500000|gpu:a100:4(S:0-1)|mixed
    gpu|up|1-00:00:00|2|48|480000|gpu:a100:4(S:0-1)|idle
    gpu|up|1-00:00:00|10|40|384000|gpu:v100:8(S:0-1),nvme:1|idle
    gpu|up|1-00:00:00|4|256|4000000|(null)|idle
    mig|up|infinite|200|128|1000000|gpu:a100_1g.5gb:56(S:0-1)|idle
    old|up|infinite|90|16+|64000+|gpu:2|down*
"""


def test_each_kind_of_node_is_one_entry(fake):
    fake.cluster(MIXED)
    found = {(p.name, p.gpu_type): p for p in read_partitions()}
    a100 = found["gpu", "a100"]
    assert (a100.num_nodes, a100.cpus_per_node, a100.mem_mb_per_node) == (40, 48, 480000)
    assert found["gpu", "v100"].gpus_per_node == 8 and found["batch", "a100"].num_gpus == 8
    assert found["batch", None].num_nodes == 1000 and found["mig", None].gpus_per_node == 0
    assert (found["old", None].num_nodes, found["old", None].num_gpus) == (90, 0)  # none works


def test_the_most_gpus_win_not_the_most_nodes(fake):
    fake.cluster(MIXED)
    findings = inspect()
    site = findings.site
    assert (site.gpu_partition, site.gpu_type, site.cpu_partition) == ("gpu", "a100", "batch")
    assert (site.cpus_per_gpu, site.max_runtime_min) == (12, 1440)
    assert site.max_mem_gib == 450 and site.account is None
    notes = "\n".join(findings.notes)
    assert "batch (a100), gpu (v100)" in notes and "mig" not in notes
    assert set(site.gpu_speed) == {"a100", "v100"}


def test_two_types_in_one_node(fake):
    fake.cluster("all*|up|infinite|3|32|256000|gpu:a100:2(S:0),gpu:v100:6(S:1)|idle")
    assert [(p.name, p.gpu_type, p.gpus_per_node) for p in read_partitions()] == [
        ("all", "a100", 2),
        ("all", "v100", 6),
    ]


def test_slices_alone_are_no_gpus(fake):
    fake.cluster("mig*|up|infinite|4|128|1000000|gpu:1g.10gb:28(S:0-1)|idle")
    findings = inspect()
    assert findings.site.gpu_request == "none" and "whole GPUs" in "\n".join(findings.notes)


def test_broken_nodes_do_not_count(fake):
    fake.cluster(
        """
        new|up|1-00:00:00|50|64|500000|gpu:h100:8|drained
        new|up|1-00:00:00|9|64|500000|gpu:h100:8|draining
        old|up|1-00:00:00|2|64|500000|gpu:v100:4|allocated
        old|up|1-00:00:00|1|64|500000|gpu:v100:4|idle~
        """
    )
    assert inspect().site.gpu_partition == "old"


def test_limits_of_a_partition_and_of_the_user(fake):
    fake.cluster(
        "gpu|up|2-00:00:00|4|128|1000000|gpu:a100:4|idle",
        "PartitionName=gpu MaxNodes=2 MaxCPUsPerNode=64 MaxMemPerNode=400000 PriorityTier=1",
    )
    fake.accounts("proj1||12:00:00|normal|normal\\n")
    site = inspect().site
    assert (site.cpus_per_gpu, site.max_mem_gib, site.max_runtime_min) == (16, 375, 720)
    (only,) = read_partitions()
    assert only.max_nodes == 2
    fake.accounts("proj1|||normal|normal\\n", qos="normal|06:00:00\\nlong|7-00:00:00\\n")
    assert inspect().site.max_runtime_min == 360


def test_accounts_are_those_of_this_cluster_and_of_the_partition(fake):
    fake.cluster(
        "gpu|up|2-00:00:00|4|128|1000000|gpu:a100:4|idle",
        "PartitionName=gpu AllowAccounts=proj2,proj3 AllowQos=gpu,long MaxNodes=UNLIMITED PriorityTier=1",
    )
    fake.accounts(
        "proj1|||normal|normal\\nproj2|||normal,gpu,long|normal\\n",
        qos="normal|\\ngpu|1-00:00:00\\nlong|7-00:00:00\\n", default="me|proj1",
    )  # fmt: skip
    findings = inspect()
    assert (findings.site.account, findings.site.qos) == ("proj2", "long")
    assert "your accounts: proj1, proj2; proj1 comes first" in findings.notes


def test_what_refuses_is_passed_over(fake):
    """The biggest partition is another group's."""
    fake.cluster(MIXED)
    refused = "sbatch: error: Batch job submission failed: User's group not permitted to use this partition"
    fake.script(
        "sbatch",
        f'case "$*" in *partition=gpu*|*partition=batch*ntasks=1*) echo "{refused}" >&2; exit 1;; esac\n'
        f"echo '{TAKEN}' >&2",
    )
    findings = inspect()
    assert (findings.site.gpu_partition, findings.site.cpu_partition) == ("batch", "mig")
    assert any("gpu (a100) has more GPUs but refuses" in note for note in findings.notes)


def test_the_chooser_asks_each_type_and_no_node_for_more_than_it_has(fake):
    fake.cluster(MIXED)
    fake.script("sbatch", f"echo \"$*\" >> '{fake.folder}/asked'\necho '{TAKEN}' >&2")
    site = read_site({"cpus_per_gpu": 14, "mem_gib_per_gpu": 100, "gpu_speed": {"a100": 1.0, "v100": 0.4}})
    found = partition_choice.offers(Layout(1, 4), read_partitions(), site, 3600)
    assert [(o.partition, o.gpu_type) for o in found if o.end] == [
        ("batch", "a100"),
        ("gpu", "a100"),
        ("gpu", "v100"),
    ]
    asked = (fake.folder / "asked").read_text().splitlines()
    assert any("--gres=gpu:v100:4" in line and "--cpus-per-task=20" in line for line in asked)
    slower = next(o for o in found if o.gpu_type == "v100")
    assert slower.settings["gpu_type"] == "v100" and slower.end - slower.start == 9000
    assert "'gpu:4' per node is more" in next(o for o in found if o.partition == "old").refusal


TIERS = """
    PartitionName=day Nodes=n[1-8] MaxNodes=UNLIMITED PriorityTier=1 PreemptMode=REQUEUE
    PartitionName=alone Nodes=n9 MaxNodes=UNLIMITED PriorityTier=1 PreemptMode=REQUEUE
    PartitionName=safe Nodes=n[1-8] MaxNodes=UNLIMITED PriorityTier=1 PreemptMode=OFF
    PartitionName=urgent Nodes=n[7-8] MaxNodes=UNLIMITED PriorityTier=9 PreemptMode=OFF
"""


def preemptible(fake: Fake) -> set[str]:
    names = ("day", "alone", "safe", "urgent")
    fake.cluster("\n".join(f"{name}|up|infinite|2|64|500000|gpu:a100:4|idle" for name in names), TIERS)
    return {p.name for p in read_partitions() if p.preemptible}


def test_jobs_are_preempted_only_where_a_higher_tier_shares_the_nodes(fake, monkeypatch):
    by_tier = CONFIG.replace("(null)", "preempt/partition_prio")
    monkeypatch.setitem(globals(), "CONFIG", by_tier)
    assert preemptible(fake) == {"day"}
    monkeypatch.setitem(globals(), "CONFIG", by_tier.replace("partition_prio", "qos"))
    assert preemptible(fake) == set()  # tiers decide nothing there
    monkeypatch.setitem(globals(), "CONFIG", by_tier.replace("preempt/partition_prio", "(null)"))
    assert preemptible(fake) == set()


def test_ranks_on_cpus_are_compared_on_nodes_without_gpus(fake):
    fake.cluster(MIXED)
    site = read_site({"gpu_request": "none", "cpu_partition": "batch", "cpus_per_gpu": 40})
    found = partition_choice.offers(Layout(1, 2), read_partitions(), site, 3600)
    assert {(o.partition, o.gpu_type) for o in found} >= {("batch", None), ("gpu", None), ("mig", None)}
    assert ("gpu", "a100") not in {(o.partition, o.gpu_type) for o in found}
    assert {o.speed for o in found} == {1.0}
    mig = next(o for o in found if o.partition == "mig")
    assert mig.settings["cpu_partition"] == "mig" and "gpu_partition" not in mig.settings


def test_the_named_partition_is_asked_as_a_submission_would_ask(fake):
    """Lowered settings would be taken where the job itself is refused."""
    fake.cluster("gpu|up|infinite|2|16|64000|gpu:a100:4|idle\nother|up|infinite|2|16|64000|gpu:a100:4|idle")
    found = {
        o.partition: o for o in partition_choice.offers(Layout(1, 4), read_partitions(), read_site({}), 3600)
    }
    assert "32 CPUs per node are more" in found["gpu"].refusal and not found["gpu"].settings
    assert found["other"].refusal is None and found["other"].settings["cpus_per_gpu"] == 4


def test_a_node_larger_than_its_partitions_others_counts(fake):
    fake.cluster("gpu|up|infinite|2|16|64000|gpu:a100:4|idle\ngpu|up|infinite|1|64|900000|gpu:a100:4|idle")
    (offer,) = partition_choice.offers(
        Layout(1, 4), read_partitions(), read_site({"mem_gib_per_gpu": 100}), 3600
    )
    assert offer.refusal is None
