"""Every command, option and setting that a remedy names is one that exists.

WAYS says how each is checked; a new one that no row matches fails the test. The commands that run on a cluster or in
a study are run by the tests of docs/troubleshooting.md, which is made of these remedies.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dist3dgs.cli import main
from dist3dgs.diagnose.rules import RULES
from dist3dgs.diagnose.rules.remedies import REMEDIES
from dist3dgs.slurm.settings import Site

REPOSITORY = Path(__file__).parents[2]
#: What must stand in a slurm.conf before Slurm's programs say how they are called.
SLURM_CONF = "\n".join(
    (
        "ClusterName=x",
        "SlurmctldHost=localhost",
        "AuthType=auth/none",
        "NodeName=localhost",
        "PartitionName=a Nodes=localhost",
        "",
    )
)
OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")


def spans() -> dict[str, list[str]]:
    """Code spans of all remedies -> where they stand."""
    texts = [(r.name, r.remedy) for r in RULES]
    texts += [
        (f"{trainer}, {rule}", text) for trainer, told in REMEDIES.items() for rule, text in told.items()
    ]
    found: dict[str, list[str]] = {}
    for place, text in texts:
        for span in re.findall(r"`([^`]+)`", text):
            found.setdefault(span, []).append(place)
    return found


@cache
def help_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def options(span: str) -> Iterator[str]:
    for m in OPTION.finditer(re.sub(r"'[^']*'", "", span)):
        yield m[0]


def dist3dgs(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [w for w in span.split()[1:] if re.fullmatch(r"[a-z][a-z-]*", w)]
    with pytest.raises(SystemExit) as done:
        main([*words, "--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0 and all(o in shown for o in options(span))


def snakemake(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = help_of(sys.executable, "-m", "snakemake", "--help")
    assert [o for o in options(span) if o not in shown] == []
    for profile in re.findall(r"--profile (\S+)", span):
        assert (REPOSITORY / profile / "config.yaml").is_file()
    rules = "\n".join(f.read_text() for f in (REPOSITORY / "workflow/rules").glob("*.smk"))
    for rule in re.findall(r"--forcerun (\w+)", span):
        assert re.search(rf"^rule {rule}:", rules, re.M)


def make(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert re.search(rf"^{span.split()[1]}:", (REPOSITORY / "Makefile").read_text(), re.M)


def slurm(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = "sbatch" if span.startswith("#SBATCH") else span.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    conf = tmp_path / "slurm.conf"
    conf.write_text(SLURM_CONF)
    shown = help_of("env", f"SLURM_CONF={conf}", program, "--help")
    assert "error" not in shown.splitlines()[0]
    for option in options(span):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), option
    for word in re.findall(r"^(?:scontrol|sacctmgr) (\w+)", span):
        assert word in shown


def torchrun(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    known = get_args_parser().format_help()
    assert [o for o in options(span) if o not in known] == []


def python(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if code := re.search(r"-c '([^']+)'", span):
        compile(code[1], span, "exec")
    else:
        done = subprocess.run(
            [sys.executable, *span.split()[1:], "-c", "pass"], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")


def setting(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`train.densify.max_gaussians`, `sfm.matcher: exhaustive`: the schemas have it, and take the value."""
    name, _, value = span.partition(": ")
    head, *path = name.split(".")
    if head == "site":
        assert path[0] in Site.model_fields
        return
    schema, keys = {
        "sfm": ("scene", ["sfm", *path]),
        "init": ("strategy", ["init"]),
    }.get(head, ("config", [head, *path]))
    whole = json.loads((REPOSITORY / f"workflow/schemas/{schema}.schema.json").read_text())
    node: dict[str, Any] = whole
    for key in keys:
        node = _of_reference(node, whole)["properties"][key]
    if value:
        assert value in json.dumps(node)


def _of_reference(node: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    for choice in (node, *node.get("allOf", ()), *node.get("anyOf", ())):
        if "$ref" in choice:
            return whole["$defs"][choice["$ref"].rsplit("/", 1)[1]]
    return node


def a_file_or_key(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = "\n".join(p.read_text() for p in (REPOSITORY / "src/dist3dgs").rglob("*.py"))
    assert f'"{span}"' in source or f"{span} " in source


Check = Callable[[str, pytest.CaptureFixture[str], Path], None]
#: Span -> its check, or why nothing here can check it.
WAYS: tuple[tuple[str, Check | str], ...] = (
    (r"dist3dgs .+", dist3dgs),
    (r"make \w+", make),
    (r"#SBATCH --.+|(?:sinfo|srun|sbatch|scontrol|sacctmgr)\b.*", slurm),
    (r"sacct .+", "asks the accounting database first; run on the test cluster with the other texts"),
    (r"torchrun.*|--(?:rdzv|node-rank).*", torchrun),
    (r"python -[Xc] .+", python),
    (r"(?:site|train|hardware|sfm)\.[\w.]+(?:: \w+)?|init: \w+|results", setting),
    (r"ingest\.json|world|sharded", a_file_or_key),
    (r"--(?:machine|pipeline)\..+|ns-.+|nerfstudio-data .+", "nerfstudio's, which is no dependency"),
    (
        r"--(?:packed|data-factor 4|strategy\..+)|mcmc .+",
        "gsplat's simple_trainer.py, which is no dependency",
    ),
    (r"nvidia-smi.*|compute-sanitizer .+", "needs a GPU's driver or toolkit"),
    (
        r"colmap .+|gdb .+|py-spy dump|ibstat|ss .+|lfs quota|quota -s",
        "a program of its own that need not be here",
    ),
    (r"df .+|dmesg .+|lscpu|nohup|ulimit -v|touch .+|module spider NAME", "the system's"),
    (r"--shm-size|-march=native|--help", "an option of docker, of compilers, of any program"),
    (
        r"init_process_group\(.+|torch\.cuda\.set_device\(.+|\w+=(?:True|0)|@record|what\(\):|NodeAddr",
        "code and words",
    ),
)


def way_of(span: str) -> Check | str | None:
    return next((way for pattern, way in WAYS if re.fullmatch(pattern, span)), None)


def test_every_span_has_a_way() -> None:
    without = {span: places for span, places in spans().items() if way_of(span) is None}
    assert not without, "name in WAYS how these are checked, or why they cannot be"


def test_every_way_is_used() -> None:
    assert [p for p, _ in WAYS if not any(re.fullmatch(p, span) for span in spans())] == []


@pytest.mark.parametrize("span", sorted(s for s in spans() if callable(way_of(s))))
def test_what_a_remedy_names_exists(span: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    way = way_of(span)
    assert callable(way)
    way(span, capsys, tmp_path)


def test_a_remedy_for_a_trainer_belongs_to_a_rule() -> None:
    assert {rule for told in REMEDIES.values() for rule in told} <= {r.name for r in RULES}


@pytest.mark.parametrize(
    "line, variable",
    [
        ("Permission denied: '/home/kim/.cache/torch_extensions/py311_cu124'", "TORCH_EXTENSIONS_DIR"),
        ("Disk quota exceeded: '/home/kim/.triton/cache/a'", "TRITON_CACHE_DIR"),
        ("Read-only file system: '/home/kim/.config/matplotlib'", "MPLCONFIGDIR"),
        ("Permission denied: '/home/kim/.cache/huggingface/hub'", "HF_HOME"),
        ("Read-only file system: '/home/kim/.cache/pip/http-v2'", "PIP_CACHE_DIR"),
        ("Read-only file system: '/home/kim/.cache/other'", "XDG_CACHE_HOME"),
    ],
)
def test_the_remedy_of_a_cache_begins_with_its_variable(line: str, variable: str) -> None:
    rule = next(r for r in RULES if r.name == "cache-not-writable")
    assert f"export {variable}=" in rule.remedy_for(None, f"PermissionError: {line}").split(". ")[0]
    assert "XDG_CACHE_HOME" in rule.remedy_for(None)
