"""Check Python, the installed packages, PyTorch and Snakemake's Slurm plugin against what is needed and locked."""

import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from .setup import Result, Setup

#: Packages whose versions decide whether jobs are submitted and followed as tested.
SCHEDULING = ("snakemake", "snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep")


def check_python(s: Setup) -> Iterator[Result]:
    needed = metadata.metadata("dist3dgs")["Requires-Python"]
    found = ".".join(map(str, sys.version_info[:3]))
    if not Requirement(f"python{needed}").specifier.contains(found):
        yield Result("python", "fail", f"{found}, needed: {needed}", "make setup PYTHON=python3.11")
    else:
        yield Result("python", "ok", f"{found}, {sys.executable}")


def check_packages(s: Setup) -> Iterator[Result]:
    """Compare installed packages with what dist3dgs needs, and with the lock if there is one."""
    wrong = []
    for text in metadata.requires("dist3dgs") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _version(needed.name)
        if found is None:
            wrong.append(f"{needed.name} is missing")
        elif not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} is {found}, needed: {needed.specifier}")
    if wrong:
        yield Result("packages", "fail", "; ".join(wrong), "make setup")
        return
    locked = _locked(s.lock)
    other = [
        f"{name} is {found}, locked: {version}"
        for name, version in locked.items()
        if (found := _version(name)) is not None and _public(found) != _public(version)
    ]
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        yield Result("packages", "warn", f"not those of {s.lock}: {'; '.join(other[:5])}{more}", "make setup")
    else:
        yield Result(
            "packages", "ok", f"as in {s.lock}" if locked else "as needed; no requirements.lock here"
        )


def check_torch(s: Setup) -> Iterator[Result]:
    facts = s.torch
    where = f" in {s.site.image}" if s.site.image else ""
    if "failed" in facts:
        yield Result("torch", "fail", f"cannot be imported{where}: {facts['failed']}", "make setup")
    elif facts["dist3dgs"] is None:
        fix = f"pip install . in the image, or set site.image to another one than {s.site.image}"
        yield Result("torch", "fail", f"{facts['torch']}{where}, which has no dist3dgs", fix)
    elif not facts["gloo"]:
        yield Result("torch", "fail", f"{facts['torch']}{where} has no Gloo backend", "make setup")
    else:
        build = f"CUDA {facts['cuda']}" if facts["cuda"] else "CPU build"
        yield Result("torch", "ok", f"{facts['torch']} ({build}){where}, Python {facts['python']}")


def check_plugin(s: Setup) -> Iterator[Result]:
    """Compare the installed versions of Snakemake and its Slurm plugin with the pinned ones."""
    locked = _locked(s.lock)
    found = {name: _version(name) for name in SCHEDULING}
    text = ", ".join(f"{name.removeprefix('snakemake-executor-plugin-')} {v}" for name, v in found.items())
    if missing := [name for name, version in found.items() if version is None]:
        yield Result("plugin", "fail", f"{', '.join(missing)}: not installed", "make setup")
    elif other := [n for n, v in found.items() if n in locked and v != locked[n]]:
        tested = ", ".join(f"{name}=={locked[name]}" for name in other)
        fix = f"pip install {tested.replace(',', '')}"
        yield Result("plugin", "warn", f"{text}; tested: {tested}", fix)
    else:
        yield Result("plugin", "ok", text)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str) -> str:
    """Return the version without its build (+cpu, +cu130)."""
    return Version(version).public


def _locked(path: Path) -> Mapping[str, str]:
    """Return the versions by package of a requirements file; {} where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)", text, re.M))
