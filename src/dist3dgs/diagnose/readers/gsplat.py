"""gsplat's `simple_trainer.py`, the original 3DGS trainer and OpenSplat."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re
from pathlib import Path
from typing import Literal

from ..facts import FactPattern, Facts, Line, number

_C = re.compile

#: How trainers state the number of Gaussians.
COUNTS = (
    r"Number of GS: (\d+)",
    r"['\"]num_GS['\"]: (\d+)",
    r"Culled \d+ gaussians, remaining (\d+)",
    r"Culled \d+ gaussians \([^\n]{0,200}?(\d+) remaining\)",
    r"(?i)\bloss\b[^\n]{0,80}\bpoints['\"]?[=:] ?(\d+)",
    r"Now having (\d+) GSs",
    r"Now num of 3dgs: (\d+)",
    r"(?i)(?<!max )(?<!maximum )(?:\b|\bnum_|#)(?:gaussians|splats|3dgs)['\"]?(?: left| now| remaining)?[ =:]+(\d+)\b(?![.,/]\d| ?(?:cloned|split|pruned|added|removed|culled|duplicated|of\b|per\b|/))",
)


def _count(key: str, keep: Literal["last", "max"]) -> tuple[FactPattern, ...]:
    return tuple(FactPattern(key, _C(c), lambda m: int(m[1]), keep, often=True, placed=True) for c in COUNTS)


FACTS = (
    *_count("num_gaussians", "last"),
    *_count("most_gaussians", "max"),
    FactPattern("trainer", _C(r"simple_trainer\.py|Distributed worker: \d+ ?/ ?\d+"), lambda m: "gsplat"),
    FactPattern("devices_used", _C(r"Distributed worker: \d+ ?/ ?(\d{1,5})"), lambda m: int(m[1])),
    FactPattern("psnr", _C(r"\bPSNR: ([\d.]+),? SSIM"), lambda m: number(m[1]), "last", often=True),
    FactPattern("ssim", _C(r"\bSSIM: ([\d.]+)"), lambda m: number(m[1]), "last", often=True),
    FactPattern("lpips", _C(r"\bLPIPS: ([\d.]+)"), lambda m: number(m[1]), "last", often=True),
    FactPattern("psnr", _C(r"\[ITER \d+\] Evaluating test: L1 [\d.e-]+ PSNR ([\d.]+)"), lambda m: number(m[1]), "last", often=True),
    # As the console prints it and as train_step*_rank*.json has it. In val_step*.json the time is that of one image.
    FactPattern("gpu_peak_gib", _C(r"""\{['"]mem['"]: ([\d.]+), ['"]ellipse_time['"]"""), lambda m: number(m[1]), "max", often=True),
    FactPattern("stepping_s", _C(r"""['"]mem['"]: [\d.]+, ['"]ellipse_time['"]: ([\d.]+)"""), lambda m: number(m[1]), "max", often=True),
    FactPattern("quality_json", _C(r'^\{"psnr": ([\d.]+), "ssim": ([\d.]+), "lpips": ([\d.]+)'), lambda m: tuple(number(x) for x in m.groups()), "last", often=True),
    FactPattern("finish", _C(r"^\s*Viewer running\.\.\. Ctrl\+C to exit"), lambda m: "viewer waits after training", "last"),
    FactPattern("finish", _C(r"^Training complete\.(?: \[\d|$)"), lambda m: "Training complete.", "last"),
)  # fmt: skip

STATS = re.compile(r"(train|val)_step(\d{1,9})(?:_rank(\d{1,5}))?\.json")


def read_name(path: Path, facts: Facts) -> None:
    """What the name of a file in gsplat's `stats` folder states: step, counted from 0, and rank."""
    if m := STATS.fullmatch(path.name):
        line = Line(str(path), None, path.name)
        facts.add("trainer", "gsplat", line)
        facts.add("steps_done", int(m[2]) + 1, line, "max")
        if m[3] is not None:
            facts.add("rank", int(m[3]), line, "set")
