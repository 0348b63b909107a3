"""Held-out photographs beside what was rendered for them, and where the two differ."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs.record import RunRecord
from .content import Content
from .markup import Html, data_uri, tag

MAX_WIDTH_PX = 720
JPEG_QUALITY = 92
DIFFERENCE_GAIN = 4
MAX_VIEWS = 3


@dataclass(frozen=True)
class Shown:
    """One run whose renders are shown."""

    record: RunRecord
    folder: Path

    @property
    def name(self) -> str:
        run = self.record.run
        return f"{run.strategy} {run.layout}"

    def views(self) -> list[str]:
        """Return names of the views that have both pictures."""
        found = {p.name.removesuffix(".render.png") for p in self.folder.glob("*.render.png")}
        return sorted(v for v in found if (self.folder / f"{v}.photo.png").is_file())

    def psnr(self, view: str) -> float | None:
        """Return the files of one view by its picture's name: the photograph's, slashes replaced."""
        return next((v.psnr for v in self.record.metrics.views if v.name.replace("/", "_") == view), None)


def comparison(content: Content, scene: str) -> Html | None:
    """Return photographs and renders of up to three held-out views: the worst, the middle and the best one."""
    shown = choose(content, scene)
    if not shown:
        return None
    views = pick_views(shown[0])
    rows = []
    for view in views:
        cells = [_cell(_jpeg(shown[0].folder / f"{view}.photo.png"), f"photograph {view}")]
        for run in shown:
            psnr = run.psnr(view)
            label = f"rendered, {run.name}" + ("" if psnr is None else f", {psnr:.2f} dB")
            cells.append(_cell(_jpeg(run.folder / f"{view}.render.png"), label))
        last = shown[-1].folder
        difference = _difference(last / f"{view}.photo.png", last / f"{view}.render.png")
        cells.append(_cell(difference, f"difference ×{DIFFERENCE_GAIN}, {shown[-1].name}"))
        rows.append(tag("div", *cells, class_=f"views views{len(cells)}"))
    return tag("div", *rows)


def choose(content: Content, scene: str) -> list[Shown]:
    """Return the smallest and the largest successful run of a scene that left renders, the same strategy if "
    "possible."""
    found = [
        Shown(r, p.parent / "renders")
        for r, p in zip(content.records, content.paths, strict=True)
        if r.run.scene == scene and r.status == "ok" and (p.parent / "renders").is_dir()
    ]
    found = [s for s in found if s.views()]
    found.sort(key=lambda s: (s.record.world_size, s.record.run.strategy, s.record.run.repeat))
    if not found:
        return []
    first = found[0]
    same = [s for s in found if s.record.run.strategy == first.record.run.strategy]
    last = max(same, key=lambda s: s.record.world_size)
    if last.record.world_size == first.record.world_size:
        last = max(found, key=lambda s: s.record.world_size)
    return [first] if last.record.world_size == first.record.world_size else [first, last]


def pick_views(run: Shown) -> list[str]:
    """Choose the worst, the middle and the best view by PSNR, if it is known."""
    views = run.views()
    if len(views) <= MAX_VIEWS:
        return views
    ranked = sorted((v for v in views if run.psnr(v) is not None), key=lambda v: run.psnr(v) or 0.0)
    if len(ranked) < MAX_VIEWS:
        return views[:MAX_VIEWS]
    return [ranked[0], ranked[len(ranked) // 2], ranked[-1]]


def _cell(content: bytes | str, label: str) -> Html:
    if isinstance(content, str):
        return tag("figure", tag("p", content, class_="missing"), tag("figcaption", label))
    image = tag("img", src=data_uri("image/jpeg", content), alt=label)
    return tag("figure", image, tag("figcaption", label))


def _open(path: Path) -> Any:
    """Return an RGB image no wider than the page needs."""
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as image:
        small = image.convert("RGB")
    if small.width > MAX_WIDTH_PX:
        height = max(1, round(small.height * MAX_WIDTH_PX / small.width))
        small = small.resize((MAX_WIDTH_PX, height), Image.Resampling.LANCZOS)
    return small


def _encode(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def _jpeg(path: Path) -> bytes | str:
    """Return the picture for the page, or the reason why it is missing."""
    try:
        return _encode(_open(path))
    except Exception as e:  # a picture that cannot be read must not cost the report
        return f"{path.name} cannot be read: {type(e).__name__}"


def _difference(photo: Path, render: Path) -> bytes | str:
    from PIL import ImageChops

    try:
        a, b = _open(photo), _open(render)
        if a.size != b.size:
            return "photograph and render differ in size"
        return _encode(ImageChops.difference(a, b).point(lambda v: min(255, DIFFERENCE_GAIN * v)))
    except Exception as e:
        return f"no difference: {type(e).__name__}"


def missing(scenes: Sequence[str]) -> str:
    return f"No renders were kept for {', '.join(scenes)}."
