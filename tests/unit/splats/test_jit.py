"""The little kernel language, its compiler and its cache."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import llvmlite.ir as ir
import pytest
import torch

from dist3dgs.splats import loss_window
from dist3dgs.splats.cpu.jit import build, threads, vmath
from dist3dgs.splats.cpu.jit.build import CACHE_VARIABLE, compile_object, load_kernels, target_cpu
from dist3dgs.splats.cpu.jit.ir import F32, F64, I32, I64, Kernel
from dist3dgs.splats.cpu.kernels import blend, library, photometric, project, tiles
from dist3dgs.splats.render import api

REALS = pytest.mark.parametrize(("real", "dtype"), [(F32, torch.float32), (F64, torch.float64)])


def compiled(write, real: ir.Type):
    """Compile one kernel and return a function that runs it."""
    module = ir.Module("test")
    k = Kernel(module, "test", real)
    write(k, k.pointer(I64))
    k.finish()
    address = build.load_object(compile_object(str(module), *target_cpu()))("test")
    return lambda *args: threads.run(address, *args)


@REALS
def test_exp2_and_log2(real: ir.Type, dtype: torch.dtype) -> None:
    def write(k: Kernel, counter) -> None:
        x, exponential, logarithm = k.pointer(), k.pointer(), k.pointer()
        with k.loop(0, 1 << 14, 16) as i:
            exponential.store(i, vmath.exp2(k, x.load(i)))
            logarithm.store(i, vmath.log2(k, vmath.exp2(k, x.load(i))))

    x = torch.linspace(-100, 20, 1 << 14, dtype=dtype)
    exponential, logarithm = torch.empty_like(x), torch.empty_like(x)
    compiled(write, real)(x, exponential, logarithm)
    truth = torch.exp2(x.double())
    exact = 2.5e-7 if dtype == torch.float32 else 5e-16
    assert ((exponential - truth) / truth).abs().max() < exact
    assert (logarithm - torch.log2(exponential.double())).abs().max() < exact * 30


@REALS
def test_sums_and_transpositions(real: ir.Type, dtype: torch.dtype) -> None:
    def write(k: Kernel, counter) -> None:
        matrix, sums, turned, rows = k.pointer(), k.pointer(), k.pointer(), k.pointer()
        vectors = [matrix.load(16 * i) for i in range(16)]
        sums.store(0, vmath.sum_lanes(k, vectors[:11]))
        for i, column in enumerate(vmath.transpose(vectors)):
            turned.store(16 * i, column)
        three = vmath.load_rows(k, matrix, k.constant(0, I64), k.constant(7, I64), 3)
        vmath.store_rows(k, rows, k.constant(0, I64), k.constant(7, I64), [v * 2.0 for v in three])

    matrix = torch.randn(16, 16, dtype=dtype)
    sums, turned, rows = (
        torch.zeros(16, dtype=dtype),
        torch.zeros_like(matrix),
        torch.zeros(16, 3, dtype=dtype),
    )
    compiled(write, real)(matrix, sums, turned, rows)
    # The order of additions differs: near zero only an absolute bound says anything.
    close = torch.allclose(sums[:11], matrix.sum(1)[:11], atol=100 * torch.finfo(dtype).eps)
    assert close and torch.equal(turned, matrix.T)
    assert torch.equal(rows[:7], 2 * matrix.flatten()[:21].view(7, 3)) and rows[7:].abs().sum() == 0


def test_every_task_runs_once_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(k: Kernel, counter) -> None:
        done = k.pointer(I32)
        with k.tasks(counter, k.arg(I64)) as task:
            done[task] = done[task] + 1

    run, before = compiled(write, F32), torch.get_num_threads()
    for openmp in (True, False):  # torch's threads, and Python's where torch has no OpenMP
        if not openmp:
            monkeypatch.setattr(threads, "openmp", lambda: None)
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            done = torch.zeros(1000, dtype=torch.int32)
            run(done, 1000)
            assert bool((done == 1).all())
    torch.set_num_threads(before)


def render_digest(**environment: str) -> str:
    """Render in a fresh process; the digest of image and gradients."""
    code = """
import hashlib, torch
from dist3dgs.splats.render import RenderSettings, get_renderer, set_threads
set_threads(1)
g = torch.Generator().manual_seed(0)
r = get_renderer("cpu")
means = torch.randn(2000, 3, generator=g).requires_grad_()
p = r.project(means, torch.randn(2000, 4, generator=g), torch.rand(2000, 3, generator=g) * 0.1,
              torch.rand(2000, generator=g), torch.randn(2000, 16, 3, generator=g), torch.eye(4),
              torch.tensor([[40.0, 0, 24], [0, 40, 20], [0, 0, 1]]), 48, 40, RenderSettings(sh_degree=3))
image = r.rasterize(p, 48, 40)
image.colors.sum().backward()
print(hashlib.sha256(image.colors.detach().numpy().tobytes() + means.grad.numpy().tobytes()).hexdigest())
"""
    out = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    return out.stdout.strip()


R_X86_64_64 = 1  # of the System V ABI, table 4.9


@pytest.mark.parametrize("real", [F32, F64])
@pytest.mark.parametrize(
    ("name", "writer", "sources"),
    [
        ("render", library.write_all, [*Path(library.__file__).parent.glob("*.py"), Path(api.__file__)]),
        ("loss", photometric.write_all, [Path(photometric.__file__), Path(loss_window.__file__)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_code_and_constants_may_lie_anywhere(name, writer, sources, real, monkeypatch):
    """Every address has 64 bits: beside a CUDA build of PyTorch sections lie over 2 GiB apart, and LLVM aborted."""
    if not llvm.get_process_triple().startswith("x86_64"):
        pytest.skip("relocations of x86-64")
    monkeypatch.setattr(build, "load_object", lambda code: code)
    code = load_kernels(name, writer, real, sources)
    kinds = [
        struct.unpack_from("<QQq", data, at)[1] & 0xFFFFFFFF
        for section in llvm.ObjectFileRef.from_data(code).sections()
        if (section.name() or b"").startswith(b".rela")
        for data in [section.data()]
        for at in range(0, len(data), 24)
    ]
    assert set(kinds) == {R_X86_64_64}


@pytest.mark.slow
def test_avx2_and_plainer_processors_give_the_same_bits(tmp_path: Path) -> None:
    if not llvm.get_process_triple().startswith("x86_64") or not llvm.get_host_cpu_features().get("avx2"):
        pytest.skip("no AVX2 here")
    here = render_digest(**{CACHE_VARIABLE: str(tmp_path)})
    assert render_digest(**{CACHE_VARIABLE: str(tmp_path), "DIST3DGS_CPU_NAME": "haswell"}) == here
    assert len(list(tmp_path.glob("render-*.o"))) == 2, "the target is part of the cache's key"


@pytest.mark.slow
def test_every_kernel_compiles_for_arm() -> None:
    """The same code for arm64: NEON fused multiply-add of four lanes, and no call of a scalar function."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module("arm")
    blend.write_blend(module, F32, 3)
    blend.write_blend_backward(module, F32, 3, True)
    tiles.write_bin(module, F32)
    project.write_project(module, F32, 1)
    text = compile_object(str(module), "neoverse-n1", "", "aarch64-unknown-linux-gnu", assembly=True)
    assert text.count("fmla\tv") > 100
    assert {line.split()[1] for line in text.splitlines() if line.strip().startswith("bl\t")} <= {"memset"}


def write_trivial(module: ir.Module, real: ir.Type) -> None:
    k = Kernel(module, "answer", real)
    k.pointer(I64)
    k.pointer(I32)[0] = 42
    k.finish()


def answer(name: str = "trivial") -> int:
    out = torch.zeros(1, dtype=torch.int32)
    threads.run(load_kernels(name, write_trivial, F32, [Path(__file__)])("answer"), out, num_tasks=1)
    return int(out)


@pytest.fixture
def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    builds: list[int] = []
    original = build.compile_object

    def counted(*args: object, **kwargs: object) -> object:
        builds.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(build, "compile_object", counted)
    return builds


def test_the_second_time_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_builds: list[int]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "new"))
    assert (answer(), answer(), len(count_builds)) == (42, 42, 1)
    assert len(list((tmp_path / "new").glob("trivial-*.o"))) == 1


def test_a_damaged_file_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_builds: list[int]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    answer()
    (path,) = tmp_path.glob("trivial-*.o")
    for damage in (b"", b"x" * 10, path.read_bytes()[:-1], os.urandom(5000)):
        path.write_bytes(damage)
        assert answer() == 42
    assert len(count_builds) == 5


def test_code_that_others_could_have_written_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_builds: list[int]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "open"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(build.tempfile, "tempdir", None)
    answer()
    (tmp_path / "open").chmod(0o777)
    assert answer() == 42 and len(count_builds) == 2
    assert answer() == 42 and len(count_builds) == 2, "now it lies in the private folder"
    (path,) = tmp_path.glob(f"dist3dgs-kernels-{os.getuid()}/trivial-*.o")
    path.chmod(0o666)
    assert answer() == 42 and len(count_builds) == 3


@pytest.mark.parametrize("where", ["/proc/none", "/dev/null/none"])
def test_a_folder_that_cannot_be_written_is_survived(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_builds: list[int]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, where)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(build.tempfile, "tempdir", None)
    assert answer() == 42 and answer() == 42 and len(count_builds) == 1
    monkeypatch.setattr(build, "cache_folders", lambda: [Path(where)])
    assert answer() == 42 and len(count_builds) == 2, "nowhere to keep it: compiled in memory"


@pytest.mark.slow
def test_one_rank_compiles_and_the_others_wait(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from dist3dgs.splats.cpu.jit import build
original = build.compile_object
def slow(*args):
    time.sleep(1.0)
    open(sys.argv[1] + "/built", "a").write("x")
    return original(*args)
build.compile_object = slow
from tests.unit.splats.test_jit import answer
assert answer() == 42
"""
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path)}
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment) for _ in range(4)]
    assert [rank.wait() for rank in ranks] == [0] * 4
    assert (tmp_path / "built").read_text() == "x", "compiled more than once"


def test_unknown_kernels_and_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="no kernel named"):
        load_kernels("trivial", write_trivial, F32, [Path(__file__)])("question")
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert target_cpu() == ("generic", "")
