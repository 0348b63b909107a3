"""Every layout really trains on the real Slurm; only what is asked for or has changed is submitted."""

import json
import os
import re
import shutil
import subprocess
import time

import pytest
import yaml
from study import Study, plain_bin

from dist3dgs.config.naming import Layout

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
LAYOUTS = ["n1g1", "n1g2", "n1g4", "n2g1", "n2g2", "n2g4"]


#: sbatch whose answer about one job is lost after Slurm took it, as where a busy controller answers too late.
LOSSY_SBATCH = """#!/bin/sh
answer=$({sbatch} "$@") || exit $?
case "$*" in *n2g2_r0*) mkdir {lost} 2>/dev/null && {{
  echo "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received" >&2
  exit 1
}} ;; esac
echo "$answer"
"""


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory) -> Study:
    """All layouts, trained while the controller was away for 20 s and for a run's end; one submission unanswered."""
    study = Study(tmp_path_factory.mktemp("all layouts"), cluster, layouts=LAYOUTS, train={"steps": 16})
    lossy, lost = tmp_path_factory.mktemp("lossy"), tmp_path_factory.mktemp("lost") / "answer"
    real = shutil.which("sbatch", path=cluster.environment(os.environ)["PATH"])
    (lossy / "sbatch").write_text(LOSSY_SBATCH.format(sbatch=real, lost=lost))
    (lossy / "sbatch").chmod(0o755)
    snakemake = study.start("train_all", path=lossy)
    study.wait(lambda: any(map(study.attempts, LAYOUTS)), "a launcher to start", 400)
    cluster.stop_controller()
    left = time.time()
    try:
        time.sleep(20)
        study.wait(lambda: _ended_since(study, left), "a run to end while the controller is away", 400)
    finally:
        cluster.start_controller()
    code = snakemake.wait(1800)
    assert code == 0, study.log()[-5000:]
    assert lost.is_dir() and "as job" in study.terminal()
    study.first_jobs = study.jobs()  # type: ignore[attr-defined]
    return study


def _ended_since(study: Study, t: float) -> bool:
    return any((a.get("finished_at") or 0) > t for name in LAYOUTS for a in study.attempts(name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_trains_on_its_nodes_with_its_ranks(study, name):
    layout, record = Layout.parse(name), study.record(name)
    assert record["status"] == "ok", record["failure"]
    ranks = record["metrics"]["ranks"]
    assert [r["rank"] for r in ranks] == list(range(layout.world_size))
    allocated = study.attempts(name)[0]["slurm"]["nodes"]
    assert len(allocated) == layout.nodes and record["environment"]["hosts"] == sorted(allocated)
    per_node = [sum(r["host"] == node for r in ranks) for node in allocated]
    assert per_node == [layout.workers_per_node] * layout.nodes
    assert record["provenance"]["slurm_job_id"]


def test_a_controller_away_for_20_s_loses_and_doubles_nothing(study):
    comments = sorted(comment for _, _, comment in study.first_jobs)
    wanted = sorted(f"rule_train_wildcards_results_tiny_replicated_{name}_r0" for name in LAYOUTS)
    assert comments == wanted, study.log()[-5000:]
    assert all(len(study.attempts(name)) == 1 for name in LAYOUTS)


def test_the_port_is_the_jobs_and_the_interface_leads_to_the_head(study):
    argv, job = study.attempts("n2g2")[0]["argv"], study.attempts("n2g2")[0]["slurm"]["job_id"]
    assert f"--rdzv-id={job}" in argv
    assert any(re.fullmatch(r"--rdzv-endpoint=127\.0\.0\.1:(2\d|3[01])\d{3}", word) for word in argv)
    log = (study.point("n2g2") / "attempts/000/train.log").read_text()
    assert {"gpu01", "gpu02"} <= set(re.findall(r"node (\S+): interface lo to 127\.0\.0\.1", log))


def test_a_second_run_submits_nothing(study):
    before = study.jobs()
    study.run("train_all")
    assert study.jobs() == before


def test_one_point_by_its_target_in_the_config_or_not(study):
    before = {job for job, _, _ in study.jobs()}
    study.run(study.target("n1g3"))
    new = [comment for job, _, comment in study.jobs() if job not in before]
    assert new == ["rule_train_wildcards_results_tiny_replicated_n1g3_r0"]
    assert study.record("n1g3")["status"] == "ok" and len(study.record("n1g3")["metrics"]["ranks"]) == 3


def test_only_what_changed_is_submitted(study):
    """Another setting of one strategy trains that strategy's points again, and no other."""
    config = study.folder / "config/config.yaml"
    value = yaml.safe_load(config.read_text()) | {"strategies": ["replicated", "mcmc"], "layouts": ["n1g1"]}
    config.write_text(yaml.safe_dump(value))
    before = {job for job, _, _ in study.jobs()}
    study.run("train_all")
    strategies = study.folder / "config/strategies.yaml"
    library = yaml.safe_load(strategies.read_text())
    library["strategy_library"]["mcmc"]["train"]["init_opacity"] = 0.5
    strategies.write_text(yaml.safe_dump(library))
    study.run("train_all")
    new = [comment for job, _, comment in study.jobs() if job not in before]
    assert new == ["rule_train_wildcards_results_tiny_mcmc_n1g1_r0"] * 2


def test_nothing_that_needs_the_internet_runs_in_a_job(repository):
    """Rules whose verb may fetch something are local: they run where Snakemake runs."""
    rules = {}
    for path in (repository / "workflow/rules").glob("*.smk"):
        for name, body in re.findall(r"^rule (\w+):\n((?: .*\n|\n)*)", path.read_text(), re.MULTILINE):
            rules[name] = set(re.findall(r"\bdist3dgs (?:--log \S+ )?([a-z][a-z-]*)", body))
    local = set()
    for path in [repository / "Snakefile", *(repository / "workflow/rules").glob("*.smk")]:
        for block in re.findall(r"^localrules:\n((?: +\w+,\n)+)", path.read_text(), re.MULTILINE):
            local |= set(re.findall(r"\w+", block))
    jobs = {name: verbs for name, verbs in rules.items() if name not in local and verbs}
    # Whatever else becomes a job must be looked at here: these two read what is on disk.
    assert set().union(*jobs.values()) == {"ingest", "launch"}, jobs
    assert all("photographs" not in verbs and "fetch-weights" not in verbs for verbs in jobs.values())


def test_a_job_trains_without_a_network(study, tmp_path):
    """What a job runs, in a network namespace that has nothing but its own loopback."""
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("may not make a network namespace here (unshare --net, ip link)")
    program = str(plain_bin() / "dist3dgs")
    point = "tiny/replicated/n1g2/r7"
    spec = subprocess.run(
        [program, "spec", point], cwd=study.folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    launch = [program, "launch", "--spec", spec, "--scene", "data/tiny/scene.safetensors"]
    subprocess.run([*alone, *launch, "--out", str(tmp_path / point)], cwd=study.folder, check=True)
    summary = json.loads((tmp_path / point / "launch.json").read_text())
    assert summary["status"] == "ok", summary
