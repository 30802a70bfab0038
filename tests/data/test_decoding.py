"""Worker processes that stay, whoever asks them and whatever happens to them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from PIL import Image
from torch import Tensor

from packing import write_shards
from toys import draw_folders
from tutelage.data import StreamData, load_dataset
from tutelage.data import decoding as decoding_module
from tutelage.data.crops import ResizedCrop
from tutelage.data.decoding import Cut, Decoder, Place, collate
from tutelage.data.packed import Packed
from tutelage.data.sources import Names, Source


class Told(Source):
    """Images whose only colour is their row; rows of 100 and more are broken, each in another way."""

    labels = torch.arange(200)

    def open(self, row: int) -> BinaryIO:
        file = BytesIO()
        if row == 100:
            raise OSError("gone")
        Image.new("RGB", (9, 9), (row % 100, 0, 0)).save(file, "png")
        if row == 101:
            file = BytesIO(file.getvalue()[:50])
        file.seek(0)
        return file

    def name(self, row: int) -> str:
        return str(row)

    def part(self, rows: Tensor) -> Source:
        raise AssertionError


def decoder(workers: int) -> Decoder:
    return Decoder({"train": Told(), "test": Told()}, ResizedCrop(8), workers)


def places(*rows: int) -> list[Place]:
    return [Place("train", row, 0) for row in rows]


def rows(decoder: Decoder, *wanted: list[Place]) -> list[list[int]]:
    return [loaded.images[:, 0, 0, 0].tolist() for loaded in decoder.batches(wanted)]


def workers_of_this_process() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_stay_and_an_abandoned_epoch_leaves_nothing_behind(workers: int) -> None:
    before, pool = workers_of_this_process(), decoder(workers)
    assert workers_of_this_process() == before
    assert rows(pool, places(3, 1), places(2)) == [[3, 1], [2]]
    ours = workers_of_this_process() - before
    assert len(ours) == workers
    begun = pool.batches([places(row) for row in range(20)])
    assert next(begun).rows.tolist() == [0]
    assert rows(pool, places(5)) == [[5]]  # while the other one is still open
    assert [loaded.rows.tolist() for loaded in begun] == [[row] for row in range(1, 20)]
    for _ in range(3):
        assert next(pool.batches([places(row, row) for row in range(30, 60)])).rows.tolist() == [30, 30]
    assert rows(pool, places(7), places(8, 9)) == [[7], [8, 9]]
    assert workers_of_this_process() - before == ours
    pool.close()
    assert workers_of_this_process() == before
    assert rows(pool, places(4)) == [[4]]


def test_every_way_of_being_damaged_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = decoder(0).at_once(places(1, 100, 101, 2))
    assert loaded.good.tolist() == [True, False, False, True]
    assert loaded.images[:, 0, 0, 0].tolist() == [1, 0, 0, 2] and loaded.images.shape == (4, 3, 8, 8)
    assert loaded.images.is_contiguous(memory_format=torch.channels_last)
    assert loaded.readable().rows.tolist() == [1, 2]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)  # twice as many are taken for an attack
    assert not decoder(0).at_once(places(1)).good.any()


def test_a_mistake_in_the_cut_is_no_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ResizedCrop, image: Image.Image, view: int) -> Tensor:
        raise ZeroDivisionError

    monkeypatch.setattr(ResizedCrop, "__call__", broken)
    with pytest.raises(ZeroDivisionError):
        rows(decoder(0), places(1))


@pytest.mark.parametrize("error", [OSError, ValueError, MemoryError])
def test_an_image_that_cannot_be_resized_is_unreadable(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refused(*_: object, **__: object) -> Image.Image:
        raise error("no such size")

    monkeypatch.setattr("tutelage.data.crops.TF.resize", refused)
    assert not decoder(0).at_once(places(1)).good.any()


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for workers in (0, 1):
        rows(decoder(workers), places(1))
    assert torch.equal(torch.rand(3), expected)


def test_signals_do_not_end_the_workers_at_once() -> None:
    before, pool = workers_of_this_process(), decoder(2)
    begun = pool.batches([places(row) for row in range(50)])
    for _ in range(2):  # one of each worker, so that both are at work
        next(begun)
    ours = workers_of_this_process() - before
    for what in (signal.SIGINT, signal.SIGTERM):
        for pid in ours:
            os.kill(pid, what)
    assert len(list(begun)) == 48 and workers_of_this_process() >= ours
    pool.close()
    assert workers_of_this_process() == before


@pytest.mark.slow
def test_an_interpreter_that_ends_waits_for_no_worker(tmp_path: Path) -> None:
    """Also while somebody still holds an epoch that was not read to its end."""
    script = """
import sys, time
from tutelage.data import StreamData, load_dataset
data = StreamData(load_dataset("folder", sys.argv[1]), "cpu", 32, workers=2)
begun = data.train_batches(0, 0, 2)
next(begun)
if sys.argv[2] == "closed":
    begun.close()
print(time.time())
"""
    import time

    for how in ("closed", "open"):
        paths = os.pathsep.join(path for path in sys.path if path)
        ran = subprocess.run(
            [sys.executable, "-c", script, str(draw_folders(tmp_path / how)), how],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ran.returncode == 0 and ran.stderr == ""
        assert time.time() - float(ran.stdout) < 12


def test_threads_read_one_archive_at_the_same_time(tmp_path: Path) -> None:
    shards = write_shards(draw_folders(tmp_path / "files", train=20), tmp_path / "shards", size=99)
    source = load_dataset("wds", shards).train
    alone = [source.open(row).read() for row in range(len(source))]
    wrong: list[int] = []

    def read() -> None:
        for _ in range(10):
            wrong.extend(row for row, content in enumerate(alone) if source.open(row).read() != content)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [file.tell() for file in source._files.values()] == [0]  # nobody moves in the file they share
    sent = pickle.loads(pickle.dumps(source))  # as to workers that are started, not forked
    assert isinstance(sent, Packed) and sent.open(5).read() == alone[5]


def test_few_archives_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(draw_folders(tmp_path / "files"), tmp_path / "shards", size=1)
    whole = load_dataset("wds", shards).train
    expected = [whole.open(row).read() for row in range(15)]
    monkeypatch.setattr("tutelage.data.packed.MOST_OPEN", 3)
    source = load_dataset("wds", shards).train
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    assert [source.open(row).read() for row in (*range(15), *range(15))] == expected * 2
    if opened is not None:
        assert len(os.listdir("/proc/self/fd")) <= opened + 3


def test_workers_send_whole_batches_through_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = Cut({"train": Told()}, ResizedCrop(8))
    monkeypatch.setattr("torch.utils.data._utils.worker._worker_info", object())
    assert collate([cut[place] for place in places(1, 2)]).images.is_shared()


def test_names_in_arrays_are_the_names() -> None:
    given = ["a", "", "grüße/1.png", os.fsdecode(b"\xff.png"), "z" * 300]
    names = Names(given)
    assert list(names) == given and len(names) == 5 and names[2] == given[2]
    with pytest.raises(IndexError):
        names[5]
    assert list(Names([])) == []


def test_training_and_evaluation_share_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = decoding_module.DataLoader

    def counted(*arguments: object, **options: object) -> object:
        made.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(decoding_module, "DataLoader", counted)
    data = StreamData(load_dataset("folder", draw_folders(tmp_path)), "cpu", 32, workers=1)
    alone = StreamData(load_dataset("folder", tmp_path), "cpu", 32)
    for epoch in range(2):
        for ours, theirs in (
            (data.train_batches(epoch, 0, 4), alone.train_batches(epoch, 0, 4)),
            (data.eval_batches("test", 4), alone.eval_batches("test", 4)),
        ):
            for got, expected in zip(ours, theirs, strict=True):
                assert torch.equal(got.images, expected.images)
    assert len(made) == 2
