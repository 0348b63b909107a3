"""`dist3dgs site init`: write a profile, and the site it names, for the cluster this is called on.

Reads sinfo, scontrol and (where there is accounting) sacctmgr, fills in the commented templates `profile.yaml` and
`site.yaml`, and asks `sbatch --test-only` if such jobs would be taken. Where a value cannot be found out, the
default stays and a note says so.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from ..config.models import Scene
from ..config.naming import Layout
from ..errors import UserError
from ..files import write_text
from .client import SlurmError, require, slurm
from .partitions import Partition, Rights, read_partitions, read_rights, sizes
from .resources import ingest_resources, layout_resources
from .site import SITE_FILE, Site, read_site
from .submission import Refusal, test_only

#: An ingest job asks for no more of a large node: extraction and matching share work over cores, mapping does not.
INGEST_CPUS, INGEST_MEM_GIB = 16, 64.0
#: With less than this many seconds the controller may forget a job between two looks at the queue.
SAFE_JOB_AGE_S = 60
COMMENT_COLUMN = 36


@dataclass
class Findings:
    """A site as far as the cluster tells, and what the user should know about it."""

    site: Site
    notes: list[str] = field(default_factory=list)


def inspect() -> Findings:
    """Choose settings by asking the cluster. Raises `UserError` where Slurm is not there or does not answer."""
    require()
    partitions = [p for p in read_partitions() if p.up]
    if not partitions:
        raise UserError("no partition of this cluster is up for you; see: sinfo")
    notes: list[str] = []
    rights = read_rights(notes)
    gpu = sorted((p for p in partitions if p.num_gpus), key=_gpu_order(partitions), reverse=True)
    cpu = sorted(partitions, key=_cpu_order, reverse=True)
    site, chosen = Site(), None
    if gpu:
        site, chosen = _first_that_works(gpu, rights, notes)
    working_cpu, ingest = _cpu_that_works(cpu, rights, site, notes)
    if chosen is None:
        notes.append(
            f"no partition has whole GPUs: ranks will run on the CPUs of {working_cpu.name} (gpu_request: none)"
        )
        values = _values(working_cpu, rights, workers=4) | {"gpu_request": "none", "gpu_type": None}
        site = read_site(values, "site init")
    site = site.model_copy(update={"cpu_partition": working_cpu.name, **ingest})
    if chosen is not None:
        site = site.model_copy(update=_about_the_others(chosen, partitions, notes))
    _warn(notes)
    return Findings(site, notes)


def _about_the_others(
    chosen: Partition, partitions: Sequence[Partition], notes: list[str]
) -> dict[str, object]:
    """Describe the other GPUs there are, and the settings that follow."""
    others = [str(p) for p in partitions if p.gpus_per_node and p != chosen]
    if others:
        notes.append(
            f"other partitions with GPUs: {', '.join(others)}; compare them with: dist3dgs partitions"
        )
    if chosen.preemptible:
        notes.append(
            f"jobs in {chosen.name} can be preempted; they are queued again, or submitted again, and resume from a "
            "checkpoint"
        )
    types = sorted({p.gpu_type for p in partitions if p.gpu_type})
    if len(types) < 2:
        return {}
    notes.append("set gpu_speed to the relative speeds of your GPU types; 1.0 was written for all")
    return {"gpu_speed": dict.fromkeys(types, 1.0)}


def run_init(out: Path, *, force: bool = False) -> list[str]:
    """Write a profile for this cluster to `out`, its site beside it; return lines for the user.

    Args:
        out: the profile's config.yaml.
        force: write over files that exist.
    """
    site_file = out.parent / SITE_FILE
    if there := [path for path in (out, site_file) if path.exists() and not force]:
        raise UserError(
            f"already there: {', '.join(map(str, there))}; give another --out FILE, or --force to write over"
        )
    findings = inspect()
    write_text(site_file, render(findings.site))
    write_text(out, render_profile(site_file))
    return [
        f"wrote {out} and {site_file}",
        *findings.notes,
        f"next: snakemake --profile {out.parent} --dry-run all",
    ]


def render(site: Site) -> str:
    """Render the site file."""
    return _render(SITE_FILE, {name: _yaml(value) for name, value in site.model_dump().items()})


def render_profile(site_file: Path) -> str:
    """Render a profile that names `site_file`: by a relative path where it is below the working folder."""
    path, here = site_file.absolute(), Path.cwd()
    named = path.relative_to(here) if path.is_relative_to(here) else path
    plain = re.fullmatch(r"[\w./-]+", str(named))
    return _render(
        "profile.yaml", {"path": str(named) if plain else json.dumps(str(named), ensure_ascii=False)}
    )


def _render(template: str, values: Mapping[str, str]) -> str:
    text = (resources.files("dist3dgs.slurm") / template).read_text(encoding="utf-8")
    return "\n".join(_filled(line, values) for line in text.splitlines()) + "\n"


def _filled(line: str, values: Mapping[str, str]) -> str:
    """Fill a template line in, its comment moved back to the comments' column."""
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


#: Words that some YAML readers do not read as text: booleans, null, numbers.
_NO_TEXT = {*("y", "yes", "n", "no", "on", "off", "true", "false", "null", "none", "nan", "inf")}


def _yaml(value: object) -> str:
    """Format a value as YAML on one line; text is quoted unless every reader reads it as text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
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


def _gpu_order(partitions: Sequence[Partition]) -> Callable[[Partition], tuple[float | bool, ...]]:
    """Order by number of GPUs; of equals the default one, then a middle priority, then the longest time limit."""
    tiers = sorted(p.priority for p in partitions if p.num_gpus)
    middle = tiers[len(tiers) // 2] if tiers else 0

    def order(p: Partition) -> tuple[float | bool, ...]:
        # A high priority is meant for urgent work, a low one is preempted: take neither without being told.
        return p.num_gpus, p.default, -abs(p.priority - middle), min(p.max_time_s, 1e9)

    return order


def _cpu_order(p: Partition) -> tuple[float | bool, ...]:
    return p.gpus_per_node == 0, p.default, p.num_up


def _values(p: Partition, rights: Rights, workers: int) -> dict[str, object]:
    """Return site settings for the nodes of `p`."""
    account, qos, longest_s = rights.in_partition(p)
    found: dict[str, object] = dict(sizes(p, workers))
    minutes = int(min(p.max_time_s, longest_s, 7 * 24 * 3600) // 60)
    return found | {
        "account": account,
        "qos": qos,
        "gpu_partition": p.name,
        "gpu_type": p.gpu_type,
        "runtime_min": max(1, min(120, minutes)),
        "max_runtime_min": max(1, minutes),
    }


def _first_that_works(
    candidates: Sequence[Partition], rights: Rights, notes: list[str]
) -> tuple[Site, Partition]:
    """Find the first partition, and way to ask for GPUs, with which Slurm takes a job of the smallest layout."""
    refused: list[tuple[Partition, Site, Refusal]] = []
    for p in candidates:
        for way in ("gres", "gpus-per-node"):
            site = read_site(_values(p, rights, workers=p.gpus_per_node) | {"gpu_request": way}, "site init")
            refusal = test_only(layout_resources(Layout(1, 1), site), site.account).refusal
            if refusal is None:
                if refused:
                    notes.append(f"{refused[0][0]} has more GPUs but refuses: {refused[0][2]}")
                return site, p
            refused.append((p, site, refusal))
    # None does: prefer one that may do so later to one that never will.
    p, site, refusal = min(refused, key=lambda r: not r[2].transient)
    notes.append(f"a job for one GPU would be refused: {refusal}")
    return site, p


def _cpu_that_works(
    candidates: Sequence[Partition], rights: Rights, site: Site, notes: list[str]
) -> tuple[Partition, dict[str, object]]:
    """Find the first partition in which Slurm takes an ingest job of the largest size; return that size too."""
    first: Refusal | None = None
    # An ingest job without limits of its own gets all that the site allows.
    scene = Scene.model_validate({"builtin": {}, "sfm": {"memory_gib": 1e6, "timeout_s": 1e9}})
    for name in dict.fromkeys(p.name for p in candidates):
        p = next(p for p in candidates if p.name == name)
        account, qos, longest_s = rights.in_partition(p)
        # One account and QOS for all jobs: those of the training, where there is one.
        common = {} if site.account or site.qos else {"account": account, "qos": qos}
        asked = site.model_copy(update={"cpu_partition": name, **common, **_ingest_sizes(p, longest_s)})
        refusal = test_only(ingest_resources(scene, asked), asked.account).refusal
        if refusal is None:
            return p, _ingest_sizes(p, longest_s)
        first = first or refusal
    notes.append(f"a job without GPUs would be refused: {first}")
    return candidates[0], _ingest_sizes(candidates[0], rights.in_partition(candidates[0])[2])


def _ingest_sizes(p: Partition, longest_s: float) -> dict[str, object]:
    """Return CPUs, memory and time of an ingest job in `p`: what its nodes have, up to what ingestion uses."""
    node, usual = sizes(p, workers=1), Site()
    minutes = int(min(longest_s / 60, node["max_runtime_min"]))
    return {
        "ingest_cpus": min(INGEST_CPUS, p.cpus_per_node),
        "ingest_mem_gib": min(INGEST_MEM_GIB, float(node["max_mem_gib"])),
        "ingest_runtime_min": max(1, min(usual.ingest_runtime_min, minutes)),
    }


def _warn(notes: list[str]) -> None:
    """Describe the cluster's settings that matter to a study."""
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
