import json
import subprocess
import sys
from pathlib import Path

import pytest

from dist3dgs.cli import main


def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    launch = tmp_path / "results/mine/replicated/n1g2/r0/launch.json"
    assert main(["record", "--launch", str(launch), "--out", str(tmp_path / "r.json")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and f"snakemake --profile profiles/local {launch}" in err
    assert "Traceback" not in err


def test_a_spec_can_be_printed_and_read_back(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    assert main(["spec", "builtin/replicated/n2g4", "--config", str(repository / "config")]) == 0
    spec = json.loads(capsys.readouterr().out)
    assert spec["layout"] == "n2g4"
    assert main(["spec", "builtin/replicated", "--config", str(repository / "config")]) == 2
    assert main(["spec", "builtin/replicated/n1g1/../..", "--config", str(repository / "config")]) == 2


def test_what_is_printed_goes_to_the_log_too(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "points.log"
    main(["--log", str(log), "points", "--config", str(repository / "config")])
    assert "builtin/replicated/n1g1/r0" in log.read_text()
    main(["--log", str(log), "points", "--config", str(tmp_path)])
    assert "no such file" in log.read_text()


def test_a_closed_pipe_is_no_error(repository: Path) -> None:
    command = f"{sys.executable} -m dist3dgs.cli points | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=repository)
    assert "Traceback" not in done.stderr


def test_broken_yaml_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("scenes: [a\nlayouts: ]")
    assert main(["points", "--config", str(tmp_path)]) == 2
    assert "config.yaml: not valid YAML" in capsys.readouterr().err
