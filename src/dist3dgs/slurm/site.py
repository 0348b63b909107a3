"""`dist3dgs site init`: a profile for the cluster one stands on.

Reads sinfo, scontrol and (where there is accounting) sacctmgr, fills in the commented template `profile.yaml`, and
asks `sbatch --test-only` whether a job as the profile would send it is taken. What cannot be found out is left at a
default and said.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from ..errors import UserError
from ..files import write_text
from ..names import Layout
from .commands import SlurmError, format_time, require, rows, slurm
from .partitions import Partition, read_partitions
from .settings import Site, read_site
from .submission import test_only

#: With less than this many seconds the controller may forget a job between two looks at the queue.
SAFE_JOB_AGE_S = 60
COMMENT_COLUMN = 36


@dataclass
class Findings:
    """A site as far as the cluster tells, and what the user should know about it."""

    site: Site
    notes: list[str] = field(default_factory=list)


def inspect() -> Findings:
    """Ask the cluster. Raises `UserError` where Slurm is not there or does not answer."""
    require()
    partitions = [p for p in read_partitions() if p.up]
    if not partitions:
        raise UserError("no partition of this cluster is up for you; see: sinfo")
    notes: list[str] = []
    gpu, cpu = _gpu_partition(partitions), _cpu_partition(partitions)
    values: dict[str, object] = {"cpu_partition": cpu.name, "account": _account(notes)}
    if gpu is None:
        notes.append(f"no partition has GPUs: ranks will run on the CPUs of {cpu.name} (gpu_request: none)")
        values |= {"gpu_request": "none", "gpu_partition": cpu.name, **_sizes(cpu, workers=4)}
    else:
        values |= {
            "gpu_partition": gpu.name,
            "gpu_type": gpu.gpu_type,
            **_sizes(gpu, workers=gpu.gpus_per_node),
        }
        others = [p.name for p in partitions if p.gpus_per_node and p.name != gpu.name]
        if others:
            notes.append(
                f"other partitions with GPUs: {', '.join(others)}; compare them with: dist3dgs partitions"
            )
        if gpu.preemptible:
            notes.append(
                f"jobs in {gpu.name} can be preempted; they are queued again and resume from a checkpoint"
            )
        types = {p.gpu_type for p in partitions if p.gpu_type}
        values["gpu_speed"] = dict.fromkeys(sorted(types), 1.0) if len(types) > 1 else {}
        if len(types) > 1:
            notes.append("set gpu_speed to the relative speeds of your GPU types; 1.0 was written for all")
    site = read_site(values, "site init")
    site = _working_request(site, notes)
    _warn(notes)
    return Findings(site, notes)


def run_init(out: Path, *, force: bool = False) -> list[str]:
    """Write a profile for this cluster to `out` (the profile's config.yaml); what to know, line by line."""
    if out.exists() and not force:
        raise UserError(f"{out} exists; give another --out FILE, or --force to write over it")
    findings = inspect()
    write_text(out, render(findings.site))
    return [f"wrote {out}", *findings.notes, f"next: snakemake --profile {out.parent} --dry-run all"]


def render(site: Site) -> str:
    """The profile's text for `site`."""
    text = (resources.files("dist3dgs.slurm") / "profile.yaml").read_text(encoding="utf-8")
    values = {name: _yaml(value) for name, value in site.model_dump().items()}
    return "\n".join(_filled(line, values) for line in text.splitlines()) + "\n"


def _filled(line: str, values: Mapping[str, str]) -> str:
    """A template line with its values, its comment moved back to where comments stand."""
    filled = line
    for name, value in values.items():
        filled = filled.replace(f"@{name}@", value)
    if filled == line or "  #" not in filled:
        return filled.rstrip()
    code, comment = filled.split("  #", 1)
    return (
        f"{code.rstrip():<{COMMENT_COLUMN}}#{comment}"
        if len(code.rstrip()) < COMMENT_COLUMN
        else filled.rstrip()
    )


#: Words that some reader of YAML takes for something else than themselves: booleans, nothing, numbers.
_NO_TEXT = {*("y", "yes", "n", "no", "on", "off", "true", "false", "null", "none", "nan", "inf")}


def _yaml(value: object) -> str:
    """A value as YAML on one line; text is quoted unless every reader takes it for text."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value) and value.lower() not in _NO_TEXT
        return value if plain else json.dumps(value)
    return str(value)


def _gpu_partition(partitions: Sequence[Partition]) -> Partition | None:
    """The one with most GPUs; of equals the default one, then one whose jobs are not preempted, then the longest."""
    able = [p for p in partitions if p.gpus_per_node]
    middle = sorted(p.priority for p in able)[len(able) // 2] if able else 0
    return max(
        able,
        key=lambda p: (
            p.num_nodes * p.gpus_per_node,
            p.default,
            # A high priority is meant for urgent work, a low one is preempted: take neither without being told.
            -abs(p.priority - middle),
            min(p.max_time_s, 1e9),
        ),
        default=None,
    )


def _cpu_partition(partitions: Sequence[Partition]) -> Partition:
    return max(partitions, key=lambda p: (p.gpus_per_node == 0, p.default, p.num_nodes))


def _sizes(p: Partition, workers: int) -> dict[str, object]:
    """CPUs and memory of one GPU's share of a node, 4 % of the memory left to the system; times in minutes."""
    usable_gib = p.mem_mb_per_node * 0.96 / 1024
    longest = 7 * 24 * 60 if math.isinf(p.max_time_s) else int(p.max_time_s // 60)
    return {
        "cpus_per_gpu": max(1, p.cpus_per_node // workers),
        "mem_gib_per_gpu": max(1.0, math.floor(10 * (usable_gib - 1) / workers) / 10),
        "max_mem_gib": math.floor(10 * usable_gib) / 10,
        "runtime_min": min(120, longest),
        "max_runtime_min": longest,
    }


def _account(notes: list[str]) -> str | None:
    """The user's default account, or the only one; None without accounting."""
    user = os.environ.get("SLURM_USER") or _user()
    try:
        default = rows(slurm("sacctmgr", "-nP", "show", "user", user, "format=user,defaultaccount"), 2)
        every = rows(slurm("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account"), 1)
    except SlurmError:
        notes.append("this cluster keeps no accounts (sacctmgr does not answer): none is given to sbatch")
        return None
    accounts = sorted({row[0] for row in every if row[0]})
    chosen = default[0][1] if default and default[0][1] else (accounts[0] if accounts else None)
    if len(accounts) > 1:
        notes.append(f"your accounts: {', '.join(accounts)}; {chosen} was taken")
    return chosen


def _user() -> str:
    import getpass

    return getpass.getuser()


def _working_request(site: Site, notes: list[str]) -> Site:
    """The way of asking for GPUs that this cluster takes, tried with the smallest layout."""
    from .resources import layout_resources

    tried = [site.gpu_request] if site.gpu_request == "none" else ["gres", "gpus-per-node"]
    problem = None
    for way in tried:
        candidate = site.model_copy(update={"gpu_request": way})
        forecast = test_only(layout_resources(Layout(1, 1), candidate), site.account)
        if forecast.refusal is None:
            return candidate
        problem = problem or forecast.refusal
    notes.append(f"a job for one GPU would be refused: {problem}")
    return site


def _warn(notes: list[str]) -> None:
    """What of the cluster's settings matters to a study."""
    try:
        config = slurm("scontrol", "show", "config")
    except SlurmError:
        return
    pairs = (line.split("=", 1) for line in config.splitlines() if "=" in line)
    settings = {key.strip(): value.strip() for key, value in pairs}
    age = settings.get("MinJobAge", "300").split()[0]
    if age.isdigit() and int(age) < SAFE_JOB_AGE_S:
        notes.append(
            f"MinJobAge is {age} s: squeue forgets ended jobs that soon; lower poll_s and "
            "slurm-init-seconds-before-status-checks to a third of it"
        )
    if settings.get("EnforcePartLimits", "NO") == "NO":
        notes.append("this cluster queues jobs that can never start: `dist3dgs status` names them")
    accounting = "slurmdbd" in settings.get("AccountingStorageType", "")
    notes.append(f"accounting (sacct): {'yes' if accounting else 'no'}; not needed")
    extras = []
    if os.environ.get("MODULEPATH"):
        extras.append("environment modules (site.modules)")
    if shutil.which("apptainer") or shutil.which("singularity"):
        extras.append("Apptainer (site.image)")
    if extras:
        notes.append(f"also here: {', '.join(extras)}")


def summary(partitions: Sequence[Partition]) -> str:
    """The cluster in a few lines."""
    return "\n".join(
        f"{p.name:<12} {p.num_nodes} nodes ({p.num_idle} idle), {p.gpus_per_node} {p.gpu_type or 'GPU'} each, "
        f"at most {format_time(p.max_time_s)}"
        for p in partitions
    )
