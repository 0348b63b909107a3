"""Published scenes: addresses, contents of their archives, licences.

Sizes are those the hosts state, rounded; the exact size and SHA-256 of an archive are written to
config/scenes.lock.yaml when it is first fetched, and enforced from then on.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import UserError


@dataclass(frozen=True, kw_only=True)
class Archive:
    """url: official address. terms: licence, as far as it is stated. num_bytes: as the host states it, rounded."""

    url: str
    terms: str
    num_bytes: int


_MIP_TERMS = "no licence stated; published with Mip-NeRF 360, Barron et al. 2022 (jonbarron.info/mipnerf360)"
MIP_NERF_360 = Archive(
    url="https://storage.googleapis.com/gresearch/refraw360/360_v2.zip",
    terms=_MIP_TERMS,
    num_bytes=12_500_000_000,
)
MIP_NERF_360_EXTRA = Archive(
    url="https://storage.googleapis.com/gresearch/refraw360/360_extra_scenes.zip",
    terms=_MIP_TERMS,
    num_bytes=2_800_000_000,
)
TANDT_DB = Archive(
    url="https://repo-sam.inria.fr/fungraph/3d-gaussian-splatting/datasets/input/tandt_db.zip",
    terms="Tanks and Temples: CC BY-NC-SA 3.0 (Knapitsch et al. 2017); Deep Blending: research use (Hedman et al. "
    "2018); as prepared for 3D Gaussian Splatting (Kerbl et al. 2023)",
    num_bytes=700_000_000,
)

#: name -> (archive, folder inside it). Every folder holds images/ and sparse/0/; Mip-NeRF 360 also images_2, _4, _8.
PUBLISHED: dict[str, tuple[Archive, str]] = {
    **{
        f"mipnerf360/{scene}": (MIP_NERF_360, scene)
        for scene in ("bicycle", "bonsai", "counter", "garden", "kitchen", "room", "stump")
    },
    **{f"mipnerf360/{scene}": (MIP_NERF_360_EXTRA, scene) for scene in ("flowers", "treehill")},
    **{f"tandt/{scene}": (TANDT_DB, f"tandt/{scene}") for scene in ("train", "truck")},
    **{f"deepblending/{scene}": (TANDT_DB, f"db/{scene}") for scene in ("drjohnson", "playroom")},
}


def download_spec(download: str) -> dict[str, Any]:
    """Return the facts that `fetch_scene` needs for a scene's `download:` setting.

    That is the name of a published scene ("mipnerf360/garden"), or the address of an archive or folder
    ("https://...", "file:///...", a local path), with "#folder" for the scene's folder inside it.
    """
    if download in PUBLISHED:
        archive, folder = PUBLISHED[download]
        return {"url": archive.url, "folder": folder, "terms": archive.terms}
    url, _, folder = download.partition("#")
    if "://" in url or url.startswith(("/", "./", "../", "~")):
        return {"url": url, "folder": folder}
    raise UserError(
        f"download {download!r}: no published scene of that name. Known: {', '.join(sorted(PUBLISHED))}; or give an "
        "address: https://..., file:///... or a path starting with / or ./, with #folder for a folder inside it."
    )
