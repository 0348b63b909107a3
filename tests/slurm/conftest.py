"""The test cluster, started when the first test asks for it and stopped at the end if it was not up before.

Tests marked `slurm` skip with the reason, and the line that mends it, where Slurm is not installed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import CLIENTS, Cluster, default_folder, missing
from study import Study

#: Modules that wait for long, longest first: what starts last must not be what takes longest.
LONGEST = (
    "test_failures",
    "test_plain",
    "test_training",
    "test_door",
    "test_terminal",
    "test_studies",
    "test_scale",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "drill(name): the failure of drill.py that the test looks at")
    # Of `pytest -n 2` each worker has clusters of its own: a drill breaks nodes that other tests need.
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ["DIST3DGS_SLURM_DIR"] = f"{default_folder()}-{worker}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def _cluster(accounting: str) -> Iterator[Cluster]:
    if reason := missing(accounting):
        if os.environ.get(
            "DIST3DGS_REQUIRE_SLURM"
        ):  # set where Slurm must be there, as in continuous integration
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = Cluster(accounting)
    was_up = cluster.is_up()
    cluster.up()
    yield cluster
    if not was_up:
        cluster.down()


@pytest.fixture(scope="session")
def no_controller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slurm's commands where no controller answers."""
    folder = tmp_path_factory.mktemp("no controller")
    for name in CLIENTS:
        path = folder / name
        path.write_text("#!/bin/sh\necho 'error: Unable to contact slurm controller' >&2\nexit 1\n")
        path.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def no_other_cluster(
    request: pytest.FixtureRequest, no_controller: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests without the mark `slurm` ask no cluster: the real commands would wait for one that may not be there."""
    if request.node.get_closest_marker("slurm") is None:
        monkeypatch.setenv("PATH", f"{no_controller}:{os.environ['PATH']}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """With slurmdbd: accounts, sacct, limits that are enforced at submission."""
    yield from _cluster("dbd")


@pytest.fixture(scope="session")
def plain_cluster() -> Iterator[Cluster]:
    """Without accounting: no accounts, no sacct, impossible jobs are queued."""
    yield from _cluster("none")


@pytest.fixture
def on_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """This process sees the cluster's commands."""
    use(cluster, monkeypatch)
    return cluster


@pytest.fixture
def on_plain_cluster(plain_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    use(plain_cluster, monkeypatch)
    return plain_cluster


def use(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    env = cluster.environment()
    monkeypatch.setenv("PATH", env["PATH"])
    monkeypatch.setenv("SLURM_CONF", env["SLURM_CONF"])


@pytest.fixture
def make_study(cluster: Cluster, tmp_path: Path):
    """`make_study(layouts=[...], ...)`: a study in a folder with a space in its name."""

    def make(**options) -> Study:
        folder = tmp_path / "a study"
        folder.mkdir()
        return Study(folder, options.pop("cluster", cluster), **options)

    return make
