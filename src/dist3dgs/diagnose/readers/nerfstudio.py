"""nerfstudio's console (`ns-train`): a rich log, a configuration dump, and a table redrawn with cursor codes."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from ..facts import FactPattern, number

_C = re.compile


def _devices(m: re.Match[str]) -> int:
    return int(m[1]) * int(m[2])


FACTS = (
    FactPattern("trainer", _C(r"nerfstudio\.engine\.trainer|ns-train"), lambda m: "nerfstudio"),
    FactPattern("devices_used", _C(r"num_devices=(\d{1,5}), num_machines=(\d{1,5})"), _devices),
    FactPattern("iterations_asked", _C(r"\bmax_num_iterations=(\d{1,12})"), lambda m: int(m[1])),
    FactPattern("seed", _C(r"MachineConfig\(seed=(\d{1,18})"), lambda m: int(m[1])),
    FactPattern("device_type", _C(r"\bdevice_type='(\w+)'")),
    # Its full-image data managers (splatfacto) draw one photograph per device and step.
    FactPattern("images_per_step", _C(r"\bdatamanager=FullImageDatamanagerConfig\("), lambda m: 1),
    FactPattern("method", _C(r"^\s*method_name='([\w.-]+)'")),
    FactPattern("mark", _C(r"Caching ?/ ?undistorting (eval|train) images"), lambda m: f"caching_{m[1]}", "list"),
    FactPattern("mark", _C(r"^\s*\[\d\d:\d\d:\d\d\] Printing max of \d+ lines"), lambda m: "stepping", "list"),
    FactPattern("finish", _C(r"🎉 Training Finished 🎉|[─ ] Training Finished "), lambda m: "Training Finished", "last"),
    FactPattern("psnr", _C(r"\bTest PSNR\s+([\d.]+)\s*$"), lambda m: number(m[1]), "last", often=True),
    FactPattern("psnr", _C(r'^\s*"psnr": ([\d.]+)'), lambda m: number(m[1]), "last"),
    FactPattern("ssim", _C(r'^\s*"ssim": ([\d.]+)'), lambda m: number(m[1]), "last"),
    FactPattern("lpips", _C(r'^\s*"lpips": ([\d.]+)'), lambda m: number(m[1]), "last"),
)  # fmt: skip
