"""Run kernels on exactly as many threads as torch has, and on the same ones.

A kernel shares out its own tasks (see `ir.Kernel.tasks`), so running it on n threads means calling it n times at once.
torch's OpenMP runtime does that: no second pool of threads competes for the cores, and none spins while the other
works.
Where torch has no OpenMP (macOS), a pool of Python threads does it.
"""

import ctypes
import functools
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dist3dgs.errors import UserError


def set_threads(num_threads: int) -> None:
    """Use exactly `num_threads` threads in this process, for the kernels and for torch alike."""
    if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
        raise UserError(f"{num_threads!r} threads: expected a whole number of at least 1")
    torch.set_num_threads(num_threads)


def run(address: int, *args: Any, num_tasks: int | None = None) -> None:
    """Run the kernel at `address`: its first parameter is a fresh task counter, then `args`.

    Args:
        address: of the machine code.
        args: tensors (their addresses), ints, floats, in the order of the kernel's parameters.
        num_tasks: no more threads than this are used; 1 runs in the calling thread.
    """
    counter = ctypes.c_int64(0)
    packed = pack(ctypes.addressof(counter), *args)
    threads = torch.get_num_threads()
    if num_tasks is not None:
        threads = max(1, min(threads, num_tasks))
    if threads == 1:
        _body(address)(packed)
    elif (parallel := openmp()) is not None:
        parallel(address, packed, threads, 0)
    else:
        _run_in_python_threads(address, packed, threads)


def pack(*args: Any) -> bytes:
    """Pack arguments for the kernels: 8 bytes each, tensors by address, floats as doubles."""
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
    return struct.pack("".join("d" if isinstance(a, float) else "q" for a in values), *values)


@functools.cache
def _body(address: int) -> Callable[[bytes], None]:
    function = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)
    return function


@functools.cache
def openmp() -> Callable[[int, bytes, int, int], None] | None:
    """Return GOMP_parallel(function, data, num_threads, flags) of the OpenMP runtime that torch has loaded, or None.

    It is GNU's; LLVM's and Intel's runtimes have it too.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for path in dict.fromkeys(line.split()[-1] for line in lines if "omp" in line.rsplit("/", 1)[-1]):
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="kernels")


def _run_in_python_threads(address: int, packed: bytes, threads: int) -> None:
    others = [_pool(threads - 1).submit(_body(address), packed) for _ in range(threads - 1)]
    _body(address)(packed)
    for other in others:
        other.result()
