"""The settings that differ from one cluster to another: profiles/slurm/site.yaml.

The file is named by the profile's `dist3dgs-slurm-site`, which no other option replaces: a profile's `config:` is
replaced as a whole by `--config` on the command line, its `default-resources` by `--default-resources`. It is read
once, by the executor's settings (`executor.ExecutorSettings`), and reaches the Snakefile, the jobs and their launchers
as $DIST3DGS_SITE. The site never is a job parameter, so that moving to another partition or account trains nothing
again.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..config.load import load_yaml
from ..config.models import Settings, expand_home, validate
from ..errors import UserError

#: Carries the site from the executor to the Snakefile and to `dist3dgs launch`, also inside jobs.
VARIABLE = "DIST3DGS_SITE"
#: Name of the file beside a profile that `dist3dgs site init` writes, and the profile's key that names it.
SITE_FILE, SITE_KEY = "site.yaml", "dist3dgs-slurm-site"


def _none(value: object) -> object:
    return None if value in ("", "None", "null", "~") else value


Bind = Annotated[str, AfterValidator(expand_home)]
ImagePath = Annotated[Bind | None, BeforeValidator(_none)]


def _text(value: object) -> object:
    """Refuse what YAML has read as a number or a truth value, as it does with the account 2024_01 and the type 3090."""
    if isinstance(value, bool | int | float):
        raise ValueError("must be text: put it in quotes")
    return value


#: Words that go into sbatch's command line and, with `--sdm env-modules`, into the rules' shell lines: nothing that a
#: shell would read.
Module = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[A-Za-z0-9_.,:@%+=/-]+$")]
Word = Annotated[Module | None, BeforeValidator(_none)]


class Site(Settings):
    """One cluster. The defaults fit a site with one kind of GPU node and no accounting."""

    account: Word = Field(None, description="Slurm account; null: none is given to sbatch")
    gpu_partition: Word = Field(
        "gpu", description="partition of the training jobs; auto: where each layout would end first"
    )
    cpu_partition: Word = Field("cpu", description="partition of everything else, and of jobs without GPUs")
    qos: Word = None
    gpu_request: Literal["gres", "gpus-per-node", "none"] = Field(
        "gres", description="how this site asks for GPUs; none: ranks run on CPUs"
    )
    gpu_type: Word = Field(None, description="GPU type as Slurm knows it (sinfo -o %G), e.g. h100; null: any")
    exclusive: bool = Field(
        False,
        description="training jobs get whole nodes (sbatch --exclusive), which no other job shares: scaling numbers "
        "are then those of the machine; the whole nodes are charged",
    )
    cpus_per_gpu: int = Field(8, ge=1, le=1024)
    mem_gib_per_gpu: float = Field(32, gt=0, description="host memory per GPU")
    max_mem_gib: float = Field(1024, gt=0, description="largest memory of one node that may be asked for")
    ingest_cpus: int = Field(8, ge=1, le=1024, description="CPUs of an ingest job")
    ingest_mem_gib: float = Field(18, ge=1, description="largest memory of an ingest job")
    ingest_runtime_min: int = Field(250, ge=1, description="longest time limit of an ingest job")
    runtime_min: int = Field(
        120, ge=1, description="time limit of a first attempt whose run time no records of its scene predict"
    )
    runtime_margin: float = Field(
        1.5,
        ge=0,
        le=100,
        description="where they do: time limit over the upper end of the predicted run time; 0: always runtime_min",
    )
    max_runtime_min: int = Field(60 * 24, ge=1, description="the partition's longest time limit")
    check_memory: bool = Field(
        True, description="refuse points that memory cannot hold by the models of `dist3dgs preflight`"
    )
    retry_gpu_hours: float = Field(
        24, ge=0, description="GPU-hours that failed attempts of one point may lose before it is given up"
    )
    modules: list[Module] = Field([], description="environment modules loaded on the nodes")
    image: ImagePath = Field(None, description="Apptainer image with Python and dist3dgs; null: this Python")
    binds: list[Bind] = Field([], description="folders the image must see, as for apptainer --bind")
    poll_s: float = Field(10, ge=0.5, le=180, description="seconds between looks at the queue")
    gpu_speed: dict[str, float] = Field(
        {}, description="speed of each GPU type relative to the fastest, for `dist3dgs partitions`"
    )

    def gpus_request(self, gpus: int) -> str:
        """Return `gpu:h100:4` or `gpu:4`."""
        return f"gpu:{self.gpu_type}:{gpus}" if self.gpu_type else f"gpu:{gpus}"


def read_site(raw: Mapping[str, Any] | None, where: str = SITE_FILE) -> Site:
    """Validate a site's settings; raises `UserError` naming `where` and the faulty setting."""
    return validate(Site, dict(raw or {}), where)


def site_of_profile(profile: Path) -> Site:
    """Read the site that a profile names, as Snakemake would; the defaults where there is no such profile.

    Args:
        profile: the profile's config.yaml.

    Raises:
        UserError: the profile names no site, holds it at its former place, or the site's file cannot be read.
    """
    if not profile.exists():
        return read_site({})
    settings = load_yaml(profile)
    config = settings.get("config")
    if isinstance(config, Mapping) and "site" in config:
        raise UserError(former_place(profile))
    if not (named := settings.get(SITE_KEY)):
        raise UserError(no_site(profile))
    return load_site(Path(os.path.expandvars(named)).expanduser())


def load_site(path: Path) -> Site:
    """Read a site file."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, and {SITE_KEY} names it (relative paths start where snakemake runs); "
            "`dist3dgs site init --force` writes the profile and its site"
        )
    return read_site(load_yaml(path), str(path))


def former_place(profile: Path | str) -> str:
    """Say where the site has moved."""
    return (
        f"{profile}: the site is no longer read from `config: site:`, which `--config` on the command line replaces. "
        f"Its settings belong in {Path('profiles/slurm') / SITE_FILE}: `dist3dgs site init --force` writes that file "
        "and the profile for this cluster"
    )


def no_site(profile: Path | str) -> str:
    """Say what a profile without a site lacks."""
    return (
        f"{profile}: `{SITE_KEY}: FILE` is missing, the file with account, partitions and sizes; "
        "`dist3dgs site init --force` writes both"
    )


def export(site: Site) -> None:
    """Make `site` known to this process and to those it starts."""
    os.environ[VARIABLE] = site.model_dump_json()


def on_cluster(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if this process, or the Snakemake around it, submits to Slurm."""
    return bool(environ.get(VARIABLE))


def current_site(environ: Mapping[str, str] = os.environ) -> Site:
    """Return the site of the enclosing Snakemake, or the defaults."""
    return read_site(json.loads(environ[VARIABLE]), f"${VARIABLE}") if on_cluster(environ) else read_site({})
