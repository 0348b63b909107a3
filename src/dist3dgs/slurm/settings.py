"""What differs from one cluster to another: the `site` block at the top of profiles/slurm/config.yaml.

Snakemake hands a profile's `config: site:` to the workflow with every value turned into text; the model
turns it
back. The block never is a job parameter, so that moving to another partition or account retrains nothing.
"""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..spec import Settings, validate

#: Carries the block from the Snakefile to `dist3dgs launch` without being part of the command line.
VARIABLE = "DIST3DGS_SITE"


def _none(value: object) -> object:
    return None if value in ("", "None", "null", "~") else value


Text = Annotated[str | None, BeforeValidator(_none)]
#: Words that go into sbatch's command line and, with `--sdm env-modules`, into the rules' shell lines: nothing that a
#: shell would read.
Module = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@%+=/-]+$")]
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
    runtime_min: int = Field(120, ge=1, description="time limit of a first attempt")
    max_runtime_min: int = Field(60 * 24, ge=1, description="the partition's longest time limit")
    retry_gpu_hours: float = Field(
        24, ge=0, description="GPU-hours that failed attempts of one point may lose before it is given up"
    )
    modules: list[Module] = Field([], description="environment modules loaded on the nodes")
    image: Text = Field(None, description="Apptainer image with Python and dist3dgs; null: this Python")
    binds: list[str] = Field([], description="folders the image must see, as for apptainer --bind")
    poll_s: float = Field(10, ge=0.5, le=180, description="seconds between looks at the queue")
    gpu_speed: dict[str, float] = Field(
        {}, description="speed of each GPU type relative to the fastest, for `dist3dgs partitions`"
    )

    def gpus_request(self, gpus: int) -> str:
        """`gpu:h100:4` or `gpu:4`."""
        return f"gpu:{self.gpu_type}:{gpus}" if self.gpu_type else f"gpu:{gpus}"


def read_site(raw: Mapping[str, Any] | None, where: str = "profile: config.site") -> Site:
    """Validate a `site` block; raises `UserError` naming the faulty setting."""
    return validate(Site, dict(raw or {}), where)


def export(site: Site) -> None:
    """Make `site` known to the processes this one starts."""
    os.environ[VARIABLE] = site.model_dump_json()


def current_site(environ: Mapping[str, str] = os.environ) -> Site:
    """The site block of the enclosing Snakemake, or the defaults."""
    return (
        read_site(json.loads(environ[VARIABLE]), f"${VARIABLE}") if environ.get(VARIABLE) else read_site({})
    )
