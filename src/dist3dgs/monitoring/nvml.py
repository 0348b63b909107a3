"""Ask NVIDIA's management library about the GPUs, through ctypes: it is part of the driver, so there is nothing
to install and nothing to start for a sample.

Functions and structures: NVML API Reference Guide, https://docs.nvidia.com/deploy/nvml-api/.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

from ..units import GIB

SUCCESS = 0
#: NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
VERSION_BYTES = 80
#: NVML_DEVICE_UUID_V2_BUFFER_SIZE
UUID_BYTES = 96
#: Structures that may grow have a version field: size | version << 24.
MEMORY_V2 = 2 << 24


class _MemoryV2(ctypes.Structure):
    """nvmlMemory_v2_t; `used` is what nvidia-smi shows, without what the driver reserves for itself."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Memory(ctypes.Structure):
    """nvmlMemory_t, for drivers before 510."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


@dataclass(frozen=True)
class GpuState:
    """One GPU at one moment; None where the driver does not say (utilisation under MIG, for one)."""

    index: int
    memory_gib: float | None
    utilisation_percent: float | None
    power_w: float | None


@dataclass(frozen=True)
class GpuIdentity:
    """One GPU, or one instance of a GPU that is split (MIG); None where the driver does not say.

    capability: compute capability, such as `9.0`; an instance has that of its GPU, and its index.
    """

    index: int
    uuid: str | None
    capability: str | None

    def is_named(self, entry: str) -> bool:
        """Return True if an entry of CUDA_VISIBLE_DEVICES, an index or the beginning of a UUID, means this GPU."""
        return int(entry) == self.index if entry.isdigit() else (self.uuid or "").startswith(entry)


class Nvml:
    """An open NVML. Raises `OSError` where there is no driver or it does not answer."""

    def __init__(self, library: str = "libnvidia-ml.so.1") -> None:
        self._lib = ctypes.CDLL(library)
        self._check("nvmlInit_v2")
        count = ctypes.c_uint()
        self._check("nvmlDeviceGetCount_v2", ctypes.byref(count))
        self._devices: list[tuple[int, ctypes.c_void_p]] = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            # A GPU that this job was not given cannot be opened.
            if self._ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)):
                self._devices.append((index, handle))

    def gpus(self) -> list[GpuState]:
        """Sample all GPUs that this process may see."""
        return [
            GpuState(index, self._memory_gib(handle), self._utilisation(handle), self._power_w(handle))
            for index, handle in self._devices
        ]

    def identities(self) -> list[GpuIdentity]:
        """Return all GPUs that this process may see; of one that is split, its instances."""
        found = []
        for index, handle in self._devices:
            major, minor = ctypes.c_int(), ctypes.c_int()
            known = self._ask(
                "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor)
            )
            capability = f"{major.value}.{minor.value}" if known else None
            for device in self._instances(handle) or [handle]:
                found.append(GpuIdentity(index, self._uuid(device), capability))
        return found

    def _instances(self, device: ctypes.c_void_p) -> list[ctypes.c_void_p]:
        current, pending, most = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
        split = self._ask("nvmlDeviceGetMigMode", device, ctypes.byref(current), ctypes.byref(pending))
        if not split or not current.value:
            return []
        self._ask("nvmlDeviceGetMaxMigDeviceCount", device, ctypes.byref(most))
        found = []
        for number in range(most.value):
            handle = ctypes.c_void_p()
            if self._ask(
                "nvmlDeviceGetMigDeviceHandleByIndex", device, ctypes.c_uint(number), ctypes.byref(handle)
            ):
                found.append(handle)
        return found

    def _uuid(self, device: ctypes.c_void_p) -> str | None:
        text = ctypes.create_string_buffer(UUID_BYTES)
        known = self._ask("nvmlDeviceGetUUID", device, text, ctypes.c_uint(UUID_BYTES))
        return text.value.decode(errors="replace") if known else None

    def driver_version(self) -> str | None:
        text = ctypes.create_string_buffer(VERSION_BYTES)
        known = self._ask("nvmlSystemGetDriverVersion", text, ctypes.c_uint(VERSION_BYTES))
        return text.value.decode(errors="replace") if known else None

    def close(self) -> None:
        self._ask("nvmlShutdown")

    def _memory_gib(self, device: ctypes.c_void_p) -> float | None:
        new = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | MEMORY_V2)
        if self._ask("nvmlDeviceGetMemoryInfo_v2", device, ctypes.byref(new)):
            return new.used / GIB
        old = _Memory()
        return old.used / GIB if self._ask("nvmlDeviceGetMemoryInfo", device, ctypes.byref(old)) else None

    def _utilisation(self, device: ctypes.c_void_p) -> float | None:
        rates = _Utilisation()
        known = self._ask("nvmlDeviceGetUtilizationRates", device, ctypes.byref(rates))
        return float(rates.gpu) if known else None

    def _power_w(self, device: ctypes.c_void_p) -> float | None:
        milliwatts = ctypes.c_uint()
        known = self._ask("nvmlDeviceGetPowerUsage", device, ctypes.byref(milliwatts))
        return milliwatts.value / 1000 if known else None

    def _ask(self, name: str, *arguments: Any) -> bool:
        """Call a function; False where it fails or this driver does not have it."""
        function = getattr(self._lib, name, None)
        return function is not None and function(*arguments) == SUCCESS

    def _check(self, name: str, *arguments: Any) -> None:
        if not self._ask(name, *arguments):
            raise OSError(f"{name} failed")


def driver_version(library: str = "libnvidia-ml.so.1") -> str | None:
    """Return the version of this machine's NVIDIA driver; None without one."""
    try:
        nvml = Nvml(library)
    except OSError:
        return None
    version = nvml.driver_version()
    nvml.close()
    return version


def identities(library: str = "libnvidia-ml.so.1") -> list[GpuIdentity]:
    """Return this machine's GPUs as the driver names them; [] where there is no driver."""
    try:
        nvml = Nvml(library)
    except OSError:
        return []
    found = nvml.identities()
    nvml.close()
    return found
