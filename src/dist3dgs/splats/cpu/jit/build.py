"""Compile kernels for this machine once, and keep them in a cache folder.

The cache holds object files, named by a digest of everything they depend on: the sources of the kernels, the compiler,
and the processor. One process at a time compiles, the others wait for its file. Where the folder cannot be written, a
private one under the system's temporary folder is used; where that fails too, every process compiles for itself.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import llvmlite.ir as ir

from dist3dgs.files import replacing

CACHE_VARIABLE = "DIST3DGS_KERNEL_CACHE"
CPU_VARIABLE = "DIST3DGS_CPU_NAME"
FEATURES_VARIABLE = "DIST3DGS_CPU_FEATURES"
DIGEST_BYTES = 32

#: Code and constants are mapped wherever there is room: over 2 GiB apart beside a CUDA build of PyTorch, whose
#: libraries span 3 GiB. All addresses therefore have 64 bits; in the small code model LLVM would end the process.
ADDRESSES = {"reloc": "static", "codemodel": "large"}

Writer = Callable[[ir.Module, ir.Type], None]
_engines: list[Any] = []  # machine code lives as long as its engine, here as long as the process


def load_kernels(name: str, writer: Writer, real: ir.Type, sources: list[Path]) -> Callable[[str], int]:
    """Compile what `writer(module, real)` writes, or take it from the cache; return kernel name -> address.

    Args:
        name: of the module, part of the file's name.
        writer: adds kernels to an empty module.
        real: the element type, F32 or F64.
        sources: files that determine what `writer` writes.
    """
    cpu, features = target_cpu()
    digest = hashlib.sha256(
        f"{llvmlite.__version__} {llvm.llvm_version_info} {cpu} {features} {real}".encode()
    )
    for path in sorted({*sources, *Path(__file__).parent.glob("*.py")}):
        digest.update(path.read_bytes())
    file_name = f"{name}-{real}-{digest.hexdigest()[:24]}.o"

    def build() -> bytes:
        module = ir.Module(name)
        writer(module, real)
        return compile_object(str(module), cpu, features)

    return load_object(_cached(file_name, build))


def target_cpu() -> tuple[str, str]:
    """Return LLVM's name and features of the target processor; DIST3DGS_CPU_NAME and _FEATURES override the host's."""
    if name := os.environ.get(CPU_VARIABLE):
        return name, os.environ.get(FEATURES_VARIABLE, "")
    try:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM does not know this processor: take the baseline of its architecture
        return "generic", ""


def compile_object(
    text: str, cpu: str, features: str, triple: str | None = None, assembly: bool = False
) -> Any:
    """Compile LLVM IR to an object file (bytes), or to assembly text, for one processor."""
    if triple is None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        triple = llvm.get_process_triple()
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, **ADDRESSES)
    module = llvm.parse_assembly(text)
    module.triple = triple
    module.data_layout = str(machine.target_data)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module) if assembly else machine.emit_object(module)


def cache_folders() -> list[Path]:
    """List the folders that may hold the cache, best first."""
    folders = []
    if named := os.environ.get(CACHE_VARIABLE):
        folders.append(Path(named))
    else:
        base = os.environ.get("XDG_CACHE_HOME")
        with contextlib.suppress(RuntimeError):  # no home folder
            folders.append((Path(base) if base else Path.home() / ".cache") / "dist3dgs" / "kernels")
    folders.append(Path(tempfile.gettempdir()) / f"dist3dgs-kernels-{os.getuid()}")
    return folders


def _cached(file_name: str, build: Callable[[], bytes]) -> bytes:
    for folder in cache_folders():
        if (code := _read(folder / file_name)) is not None:
            return code
    for folder in cache_folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_private(folder):
                continue
            with _locked(folder / f"{file_name}.lock"):
                if (code := _read(folder / file_name)) is not None:
                    return code  # somebody else compiled while this process waited
                code = build()
                with contextlib.suppress(OSError), replacing(folder / file_name) as temporary:
                    temporary.write_bytes(hashlib.sha256(code).digest() + code)
                return code
    return build()


def _read(path: Path) -> bytes | None:
    """Return the code in a cache file; None if it is absent, damaged, or another user could have written it."""
    try:
        if not _is_private(path) or not _is_private(path.parent):
            return None
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _is_private(path: Path) -> bool:
    """Return True if only this user (and root) can have written the file: its code will be run."""
    info = path.stat()
    return info.st_uid in (os.getuid(), 0) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as f:
        with contextlib.suppress(OSError):  # some network file systems have no locks: then all may compile
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def load_object(code: bytes) -> Callable[[str], int]:
    """Load an object file into this process; return kernel name -> address, which raises `KeyError` for others."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(**ADDRESSES)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)

    @functools.cache
    def address(kernel: str) -> int:
        if not (found := engine.get_function_address(kernel)):
            raise KeyError(f"no kernel named {kernel}")
        return found

    return address
