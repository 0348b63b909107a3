"""The ctypes side against a library of the documented signatures, made here; the real one: tests/gpu/test_nvml.py."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dist3dgs.monitoring import sampler
from dist3dgs.monitoring.nvml import GpuIdentity, GpuState, Nvml, driver_version, identities

#: GPU 0 as a driver from 510 on shows it, GPU 1 not this job's, GPU 2 under MIG: no utilisation, no memory v2.
LIBRARY = """
#include <string.h>
typedef unsigned long long u64;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
typedef struct { u64 total, free, used; } memory;
typedef struct { unsigned gpu, memory; } rates;
static int devices[3], started;
int nvmlInit_v2(void) { started = 1; return 0; }
int nvmlShutdown(void) { started = 0; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 3; return started ? 0 : 1; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { if (i == 1) return 4; *d = &devices[i]; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *d, memory_v2 *m) {
    if (d != &devices[0]) return 25;
    if (m->version != (sizeof(memory_v2) | 2u << 24)) return 25;
    m->total = 80ull << 30; m->reserved = 1ull << 30; m->used = 40ull << 30; m->free = 39ull << 30; return 0;
}
int nvmlDeviceGetMemoryInfo(void *d, memory *m) {
    m->total = 8ull << 30; m->free = 6ull << 30; m->used = 2ull << 30; return 0;
}
int nvmlDeviceGetUtilizationRates(void *d, rates *r) {
    if (d == &devices[2]) return 3;
    r->gpu = 97; r->memory = 12; return 0;
}
static int slices[2];
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *next) { *now = *next = d == &devices[2]; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **s) {
    if (i > 1) return 6;
    *s = &slices[i]; return 0;
}
int nvmlDeviceGetUUID(void *d, char *text, unsigned n) {
    if (n != 96) return 7;
    strcpy(text, d == &slices[0] ? "MIG-a" : d == &slices[1] ? "MIG-b" : "GPU-0"); return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
    if (d == &slices[0] || d == &slices[1]) return 3;
    *major = 9; *minor = 0; return 0;
}
int nvmlSystemGetDriverVersion(char *text, unsigned n) {
    if (n != 80) return 7;
    strcpy(text, "570.86.15"); return 0;
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 345210; return 0; }
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, built = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source], check=True)
    return built


def test_gpus_that_are_ours_with_what_the_driver_knows(library: Path) -> None:
    nvml = Nvml(str(library))
    assert nvml.gpus() == [
        GpuState(0, memory_gib=40.0, utilisation_percent=97.0, power_w=345.21),
        GpuState(2, memory_gib=2.0, utilisation_percent=None, power_w=345.21),
    ]
    nvml.close()


def test_a_split_gpu_is_its_instances(library: Path, tmp_path: Path) -> None:
    whole, *slices = identities(str(library))
    assert whole == GpuIdentity(0, "GPU-0", "9.0")
    assert slices == [GpuIdentity(2, "MIG-a", "9.0"), GpuIdentity(2, "MIG-b", "9.0")]
    assert identities(str(tmp_path / "none.so")) == []


def test_the_driver_says_its_version_where_there_is_one(library: Path, tmp_path: Path) -> None:
    assert driver_version(str(library)) == "570.86.15"
    assert driver_version(str(tmp_path / "none.so")) is None


def test_without_a_driver_nvidia_smi_is_asked_and_not_at_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> None:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\necho '0, 2048, 97, 300.5'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sampler, "Nvml", no_driver)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ask = sampler.gpu_sampler()
    assert ask()[0]["gpu_mem_gib"] == 2.0
    assert ask() == []
    assert (tmp_path / "calls").read_text() == "x\n"


def test_a_node_without_gpus_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise OSError

    monkeypatch.setattr(sampler, "Nvml", no_driver)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sampler.gpu_sampler()() == []


def test_a_library_that_does_not_answer_is_no_driver(tmp_path: Path) -> None:
    broken = tmp_path / "libnvidia-ml.so.1"
    broken.write_bytes(b"not a library")
    with pytest.raises(OSError, match="libnvidia-ml"):
        Nvml(str(broken))
