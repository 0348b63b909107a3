"""Order of the views: each once per epoch, by seed and step alone; and photographs that are read ahead."""

import queue
import threading
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.scenes.pack import PackedScene
from dist3dgs.train.data import SceneCameras, ViewSampler
from tests.unit.helpers import tiny


@given(st.integers(1, 60), st.integers(1, 16), st.integers(1, 4), st.integers(0, 5))
def test_over_an_epoch_every_view_once_whatever_the_ranks(num_views, ranks, per_rank, seed):
    train_ids = np.arange(num_views) * 3 + 1
    batch = ranks * per_rank
    order = ViewSampler(train_ids, seed, ranks, batch)
    steps = -(-2 * num_views // batch)
    seen = [v for step in range(1, steps + 1) for part in order.batch(step) for v in part]
    assert sorted(seen[:num_views]) == train_ids.tolist()
    assert sorted(seen[num_views : 2 * num_views]) == train_ids.tolist()
    assert all(len(part) == per_rank for part in order.batch(1))


@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 5))
def test_a_resumed_run_sees_what_an_uninterrupted_one_does(num_views, step, seed):
    train_ids = np.arange(num_views)
    went_on = ViewSampler(train_ids, seed, 2, 4)
    for k in range(1, step):
        went_on.batch(k)
    assert ViewSampler(train_ids, seed, 2, 4).batch(step) == went_on.batch(step)


def test_ranks_see_different_views_and_together_the_same_as_one():
    many, one = ViewSampler(np.arange(40), 0, 8, 8), ViewSampler(np.arange(40), 0, 1, 8)
    for step in range(1, 6):
        parts = many.batch(step)
        assert len({v for part in parts for v in part}) == 8
        assert [v for part in parts for v in part] == one.batch(step)[0]


def test_seed_and_epoch_change_the_order():
    first = [
        ViewSampler(np.arange(30), seed, 1, 30).batch(step)[0] for seed, step in ((0, 1), (0, 2), (1, 1))
    ]
    assert first[0] != first[1] and first[0] != first[2]


@given(st.data(), st.integers(1, 24), st.integers(0, 5))
def test_no_step_shows_a_view_twice_where_an_epoch_has_two_batches(data, batch, seed):
    """Also across the end of an epoch, whatever remains of it."""
    num_views = data.draw(st.integers(2 * batch, 4 * batch))
    order = ViewSampler(np.arange(num_views), seed, 1, batch)
    for step in range(1, 6 * num_views // batch + 2):
        (views,) = order.batch(step)
        assert len(set(views)) == batch, f"step {step} shows a view twice: {views}"


def test_a_batch_of_more_views_than_there_are_takes_them_in_turn():
    """Every view once before any comes again."""
    order = ViewSampler(np.arange(5), 0, 4, 12)
    seen = [v for step in range(1, 11) for part in order.batch(step) for v in part]
    assert all(sorted(seen[i : i + 5]) == list(range(5)) for i in range(0, 120, 5))


def record_readers(monkeypatch) -> list[tuple[int, bool]]:
    """Return the list to which each reading of a photograph adds its view, and whether the main thread read it."""
    readers, read = [], PackedScene.image

    def image(scene: PackedScene, view: int) -> np.ndarray:
        readers.append((view, threading.current_thread() is threading.main_thread()))
        return read(scene, view)

    monkeypatch.setattr(PackedScene, "image", image)
    return readers


def test_photographs_that_do_not_fit_are_read_ahead_by_a_thread(tmp_path: Path, monkeypatch) -> None:
    scene = PackedScene.open(tiny.write_tiny(tmp_path / "scene.safetensors"))
    # as on a GPU that is too small for the scene
    cameras, read = SceneCameras(scene, torch.device("cpu"), keep=False), scene.image
    readers = record_readers(monkeypatch)
    cameras.prefetch([1, 2])
    cameras.prefetch([2, 3])  # view 1 is not wanted any more
    for view in (2, 3, 1):
        photo = cameras.get(view).photo
        assert photo is not None and np.array_equal(photo.numpy(), read(view))
    in_thread = {view for view, main in readers if not main}
    assert {2, 3} <= in_thread and readers.count((2, False)) == 1
    assert [view for view, main in readers if main] == [1]
    SceneCameras(scene, torch.device("cpu"), keep=True).prefetch([4])
    assert 4 not in {view for view, _ in readers}, "on a CPU photographs are used where they lie"


def test_photographs_that_a_gpu_keeps_are_read_ahead_once(tmp_path: Path, monkeypatch) -> None:
    """Steps of the first epoch would wait for the disk, and for copies from memory that is not pinned."""
    scene = PackedScene.open(tiny.write_tiny(tmp_path / "scene.safetensors"))
    read, readers = scene.image, record_readers(monkeypatch)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")  # the copies stay on the CPU
    cameras = SceneCameras(scene, gpu, keep=True)
    for view in (4, 5):
        cameras.device = gpu
        cameras.prefetch([4, 5])
        cameras.device = cpu
        photo = cameras.get(view).photo
        assert photo is not None and np.array_equal(photo.numpy(), read(view))
    assert readers == [(4, False), (5, False)]


def test_the_thread_that_reads_photographs_is_on_the_ranks_own_gpu(tmp_path: Path, monkeypatch) -> None:
    """It would start on GPU 0, and each rank's would hold a context there: half a gigabyte each."""
    scene = PackedScene.open(tiny.write_tiny(tmp_path / "scene.safetensors"))
    chosen: queue.Queue[tuple[torch.device, bool]] = queue.Queue()

    def set_device(device: torch.device) -> None:
        chosen.put((device, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    SceneCameras(scene, torch.device("cuda", 3), keep=False).prefetch([1])
    assert chosen.get(timeout=10) == (torch.device("cuda", 3), False)
