"""Refused submissions: the reason in words, from what a real sbatch says, in seconds."""

import os
import subprocess
import time

import pytest

from dist3dgs.config.naming import Layout
from dist3dgs.errors import UserError
from dist3dgs.slurm.client import environment, wait_for_slurm
from dist3dgs.slurm.resources import layout_resources
from dist3dgs.slurm.site import Site, read_site
from dist3dgs.slurm.submission import explain, limit_problem, preflight, test_only

ask = test_only  # pytest would collect it by its name
del test_only


def site(**changes) -> Site:
    small = {"gpu_type": "h100", "cpus_per_gpu": 2, "mem_gib_per_gpu": 1, "runtime_min": 30, "account": "lab"}
    return read_site({**small, **changes})


def refusal(layout: str = "n1g4", **changes):
    chosen = site(**changes)
    return ask(layout_resources(Layout.parse(layout), chosen), chosen.account).refusal


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("changes", "reason", "setting"),
    [
        ({"account": "nobody"}, "account 'nobody' is not known", "site.account"),
        ({"gpu_partition": "nowhere"}, "no partition 'nowhere'", "site.gpu_partition"),
        ({"layout": "n1g9"}, "'gpu:h100:9'", "smaller layout"),
        ({"layout": "n3g4"}, "3 nodes are more than partition 'gpu'", "smaller layout"),
        (
            {"runtime_min": 300, "max_runtime_min": 600},
            "300 minutes are more than partition 'gpu' allows (its limit is 4 h)",
            "site.runtime_min",
        ),
        ({"mem_gib_per_gpu": 30}, "MB", "site.mem_gib_per_gpu"),
        ({"cpus_per_gpu": 30}, "120 CPUs per node", "site.cpus_per_gpu"),
        ({"gpu_type": "v100"}, "'gpu:v100:4'", "site.gpu_type"),
        ({"qos": "gold"}, "QOS", "site.qos"),
    ],
)
def test_refused_in_words(on_cluster, changes, reason, setting):
    found = refusal(**changes)
    assert found is not None and not found.transient
    assert reason in found.reason and setting in found.remedy, str(found)
    assert found.line and "sbatch: error" not in found.line
    assert f"Slurm said: {found.line}" in str(found)


@pytest.mark.slurm
def test_what_fits_is_taken(on_cluster):
    assert refusal("n2g4") is None
    assert refusal("n2g4", gpu_request="gpus-per-node") is None
    assert refusal("n1g1", gpu_request="none") is None


@pytest.mark.slurm
def test_a_preflight_finds_what_a_lenient_cluster_would_queue_for_ever(on_plain_cluster):
    """Without EnforcePartLimits sbatch takes five hours in a four-hour partition; the job would never start."""
    lenient = site(account=None, runtime_min=300, max_runtime_min=600)
    request = layout_resources(Layout.parse("n1g4"), lenient)
    assert ask(request, None).refusal is None
    problem = limit_problem(request)
    assert problem is not None and "300 minutes" in problem.reason
    fitting = layout_resources(Layout.parse("n2g4"), site(account=None))
    assert set(preflight({"n1g4": request, "n2g4": fitting}, None)) == {"n1g4"}


def test_limits_of_an_account_are_explained():
    request = layout_resources(Layout.parse("n1g4"), site())
    found = explain(
        "sbatch: error: AssocMaxGRESPerJob\nsbatch: error: Batch job submission failed: Job violates "
        "accounting/QOS policy (job submit limit, user's size and/or time limits)",
        request,
        account="poor",
    )
    assert "account 'poor'" in found.reason and "'gpu:h100:4'" in found.reason and "sacctmgr" in found.remedy


def test_a_silent_controller_is_no_refusal_for_good():
    found = explain(
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    )
    assert found.transient and "scontrol ping" in found.remedy


FAILED = "sbatch: error: Batch job submission failed: "
POLICY = f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    "text",
    [
        f"sbatch: error: AssocMaxSubmitJobLimit\n{POLICY}",
        f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{POLICY}",
        f"sbatch: error: AssocGrpSubmitJobsLimit\n{POLICY}",
        "allocation failure: Requested partition configuration not available now",
        "allocation failure: Required node not available (down, drained or reserved)",
        f"{FAILED}Slurm temporarily unable to accept job, sleeping and retrying",
        f"{FAILED}Transport endpoint is not connected",
        f"{FAILED}Zero Bytes were transmitted or received",
        f"{FAILED}Protocol authentication error",
        f"{FAILED}Slurm backup controller in standby mode",
        f"{FAILED}Socket timed out on send/recv operation",
        f"{FAILED}Resource temporarily unavailable",
    ],
)
def test_what_passes_by_itself_is_no_refusal_for_good(text):
    assert explain(text).transient, explain(text)


@pytest.mark.parametrize(
    "text",
    [
        f"sbatch: error: AssocMaxWallDurationPerJobLimit\n{POLICY}",
        # At submission Slurm compares one job with the whole group's limit: more than that never fits.
        f"sbatch: error: AssocGrpGRES\n{POLICY}",
        f"sbatch: error: QOSMaxGRESPerUser\n{POLICY}",
        f"{FAILED}Requested node configuration is not available",
    ],
)
def test_what_never_fits_is_one(text):
    found = explain(text)
    assert found.known and not found.transient


def test_unknown_words_are_passed_on():
    found = explain("sbatch: error: lua: you must load the frobnicator\n")
    assert found.line == "lua: you must load the frobnicator" and not found.known


def test_a_job_is_taken_whatever_the_words(monkeypatch, tmp_path):
    """`SLURM_TIME_FORMAT=relative` of a user, or another release's wording, refuses nothing."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "sbatch: will start ${SLURM_TIME_FORMAT} ${SINFO_FORMAT-unset}" >&2\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SINFO_FORMAT", "%N")
    assert refusal() is None
    sbatch.rename(tmp_path / "sinfo")
    assert (
        "standard unset"
        in subprocess.run(["sinfo"], env=environment(), capture_output=True, text=True, check=True).stderr
    )


@pytest.mark.slurm
def test_groups_are_refused_before_anything_is_submitted(make_study):
    study = make_study(layouts=["n1g1"])
    assert study.run("all", "--groups", "train=small", check=False) != 0
    assert "--groups: a group asks Slurm for the sum of its jobs" in study.log() and "0068" in study.log()
    assert study.jobs() == []


@pytest.mark.slurm
def test_slurm_sends_a_mail_at_the_end_of_a_study(on_cluster):
    """The line of docs/slurm.md, behind a Snakemake that has ended with status 1."""
    line = 'false; sbatch --time=1 --output=/dev/null --mail-type=END --job-name="study-ended-$?" --wrap true'
    subprocess.run(["bash", "-c", line], check=True, capture_output=True, timeout=30)
    sent = on_cluster.root / "mail.txt"
    end = time.monotonic() + 30
    while not (sent.exists() and "Name=study-ended-1 Ended" in sent.read_text()):
        assert time.monotonic() < end, on_cluster("squeue")
        time.sleep(0.2)


def test_where_no_slurm_answers_a_study_ends_with_one_error(no_controller, capsys, monkeypatch, tmp_path):
    """The Snakefile asks so before the first job; the PATH of tests without a cluster has a dead one."""
    with pytest.raises(
        UserError, match=r"`squeue` says: error: Unable to contact slurm controller\. .*scontrol ping"
    ):
        wait_for_slurm(patience_s=0.2, pause_s=0.05)
    assert capsys.readouterr().err.count("asking again") == 1
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\n[ -e answered ] || { touch answered; exit 1; }\n")
    squeue.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    wait_for_slurm(patience_s=9, pause_s=0.05)  # it comes back
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="squeue and sbatch were not found"):
        wait_for_slurm()
