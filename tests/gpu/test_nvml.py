"""NVML says of the real GPUs what nvidia-smi says."""

import subprocess

import pytest

from dist3dgs.monitoring.nvml import Nvml
from dist3dgs.monitoring.sampler import SMI_QUERY, parse_gpu

pytestmark = pytest.mark.gpu


def test_nvml_and_nvidia_smi_agree() -> None:
    try:
        nvml = Nvml()
    except OSError as e:
        pytest.skip(f"no NVIDIA driver ({e})")
    command = ["nvidia-smi", f"--query-gpu={SMI_QUERY}", "--format=csv,noheader,nounits"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shown = {row["gpu_index"]: row for line in text.splitlines() if (row := parse_gpu(line))}
    states = {gpu.index: gpu for gpu in nvml.gpus()}
    version = nvml.driver_version()
    nvml.close()
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    assert version in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert states.keys() == shown.keys() and states
    for index, gpu in states.items():
        if shown[index]["gpu_mem_gib"] is not None:
            assert gpu.memory_gib == pytest.approx(shown[index]["gpu_mem_gib"], abs=0.1)
        if shown[index]["gpu_power_w"] is not None:
            assert gpu.power_w == pytest.approx(shown[index]["gpu_power_w"], rel=0.5)
