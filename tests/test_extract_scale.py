"""What an extraction costs: forwards, memory, bytes on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from test_extract import BATCH, EPS, Heard, attack, content, cut_off, untrained, wrap
from torch import Tensor, nn

import repsim.extract.shares
import repsim.store.write
from repsim.attacks import AttackSpec
from repsim.checkpoint import LoadedModel
from repsim.cli import main
from repsim.data import ImageData, as_image_data, draw
from repsim.errors import UserError
from repsim.extract import extract, pack
from repsim.store import Part, match_rows, open_store

SAMPLES = 56


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> LoadedModel:
    return untrained(0)


@pytest.fixture(scope="module")
def images(digits_test: ImageData) -> ImageData:
    return draw(digits_test, SAMPLES)


# Forwards


def brighter(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return (inputs + EPS).clamp(0, 1)


def darker(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return (inputs - EPS).clamp(0, 1)


def test_each_condition_is_one_forward_of_each_image(images: ImageData, tmp_path: Path) -> None:
    """Attacks share the clean pass, and a condition that is added needs no other again."""
    network, seen = untrained(0), [0]

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        seen[0] += len(output)

    network.model.register_forward_hook(count)
    one, other = (
        AttackSpec(f"mine:{f.__name__}", f.__name__, {}, f) for f in (brighter, darker)
    )  # attacks without a forward of their own
    extract(network, images, [], tmp_path / "clean.h5", batch_size=BATCH)
    layers = seen[0] - SAMPLES  # to find the layers
    assert layers <= 8
    seen[0] = 0
    extract(network, images, [one, other], tmp_path / "both.h5", batch_size=BATCH)
    assert seen[0] == layers + 3 * SAMPLES  # clean, brighter, darker
    seen[0] = 0
    extract(network, images, [one], tmp_path / "clean.h5", batch_size=BATCH)
    assert seen[0] == layers + SAMPLES
    extract(network, images, [one, other], tmp_path / "clean.h5", batch_size=BATCH)
    assert seen[0] == 2 * (layers + SAMPLES)
    assert content(tmp_path / "clean.h5") == content(tmp_path / "both.h5")


def test_writing_runs_behind_the_computation(
    images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half a batch's time for each, both together take little more than one of them."""
    writing: list[tuple[float, float]] = []
    real = Part.write

    def slow(self: Part, *arguments: Any) -> None:
        assert threading.current_thread().name == "repsim-writer"
        began = time.perf_counter()
        time.sleep(0.02)
        real(self, *arguments)
        writing.append((began, time.perf_counter()))

    monkeypatch.setattr(Part, "write", slow)
    network, computing = untrained(0), []

    def compute(module: nn.Module, args: Any) -> None:
        began = time.perf_counter()
        time.sleep(0.02)
        computing.append((began, time.perf_counter()))

    network.model.register_forward_pre_hook(compute)
    extract(network, images, [], tmp_path / "f.h5", batch_size=4)
    assert len(writing) == SAMPLES // 4
    together = sum(max(0.0, min(w[1], c[1]) - max(w[0], c[0])) for w in writing for c in computing)
    assert together > 0.5 * sum(stop - start for start, stop in writing)


# Memory


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import test_extract_scale as t
t.extract(t.wide(), t.made(1000), [t.attack("fgsm")], t.Path(sys.argv[2], "a.h5"), layers="all")
few = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = t.made(10_000)
data.fingerprint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = t.extract(t.wide(), data, [t.attack("fgsm")], t.Path(sys.argv[2], "b.h5"), layers="all")
many = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(max(many - before, many - few) // 1024, report.bytes >> 20)
"""


class Wide(nn.Module):
    """Of 64 bytes an image it makes 8 KiB."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 64, 3, padding=1)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.conv(x).mean((2, 3)))
        return logits


def wide() -> LoadedModel:
    return wrap(Wide())


def made(samples: int) -> ImageData:
    pixels = np.random.default_rng(0).integers(0, 256, (samples, 1, 8, 8), dtype=np.uint8)
    return as_image_data(pixels, np.arange(samples) % 10, name="made", split="test")


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(here), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    more, stored = map(int, done.stdout.split())
    assert stored > 225  # MiB
    assert more < 40


def test_many_rows_are_matched_without_a_table_of_objects() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, 200_000).astype(np.uint64)
    order = np.random.default_rng(1).permutation(len(ids))
    found = match_rows(ids[order], ids)
    assert (found == order).all()


# Compression


def filters(path: Path) -> dict[str, str | None]:
    found: dict[str, str | None] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape[0] > 1:
            found[name] = item.compression

    with h5py.File(path) as file:
        file["conditions"].visititems(visit)
    return found


@pytest.mark.parametrize("compress", ["lzf", "gzip"])
def test_compression_changes_nothing_but_the_size(
    network: LoadedModel, images: ImageData, tmp_path: Path, compress: str
) -> None:
    plain, small = tmp_path / "plain.h5", tmp_path / "small.h5"
    heard = Heard()
    whole = extract(network, images, [attack("fgsm")], plain, batch_size=BATCH)
    report = extract(
        network, images, [attack("fgsm")], small, batch_size=BATCH, compress=compress,
        progress=heard,
    )  # fmt: skip
    assert report.bytes < 0.95 * whole.bytes
    assert "at most" in heard.lines[0]
    assert content(small) == content(plain)
    used = filters(small)
    assert {name for name, kind in used.items() if kind} == {
        name for name in used if "/layers/" in name or name.endswith("/inputs")
    }
    assert set(used.values()) == {compress, None}
    assert set(filters(plain).values()) == {None}
    with h5py.File(small) as file:
        assert json.loads(file["conditions/clean"].attrs["made"])["compress"] == compress
        for name, shuffled in (("inputs", False), ("layers/layer1.0", True)):
            dataset = file[f"conditions/fgsm/{name}"]
            assert dataset.shuffle == shuffled
            assert dataset.compression_opts == (1 if compress == "gzip" else None)
    rows = np.random.default_rng(0).permutation(SAMPLES)
    with open_store(small) as one, open_store(plain) as other:
        mine, theirs = (s.representation("fgsm", "layer1.0").reordered(rows) for s in (one, other))
        assert np.array_equal(mine.rows(0, SAMPLES), theirs.rows(0, SAMPLES))


def test_compression_is_no_part_of_the_request(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    with monkeypatch.context() as patch:
        cut_off(patch, KeyboardInterrupt(), after=4)
        with pytest.raises(KeyboardInterrupt):
            extract(network, images, [attack("fgsm")], out, batch_size=BATCH)
    report = extract(network, images, [attack("fgsm")], out, batch_size=BATCH, compress="gzip")
    assert report.status == "continued"
    assert set(filters(out).values()) == {None}
    report = extract(network, images, [attack("fgsm")], out, batch_size=BATCH, compress="gzip")
    assert report.status == "already done"
    report = extract(network, images, [attack("pgd,steps=1")], out, compress="gzip")
    assert report.status == "condition added"
    assert filters(out)["fgsm/layers/layer1.0"] is None
    assert filters(out)["pgd/layers/layer1.0"] == "gzip"
    with pytest.raises(UserError, match="--compress expects none, lzf, gzip; got 'zip'"):
        extract(network, images, [], out, compress="zip")


def test_a_compressed_file_that_was_cut_off_is_made_again(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, out = tmp_path / "plain.h5", tmp_path / "f.h5"
    extract(network, images, [attack("fgsm")], plain, batch_size=BATCH)
    for attacks, status in (([], "written"), (["fgsm"], "condition added")):
        specs = [attack(text) for text in attacks]
        with monkeypatch.context() as patch:
            cut_off(patch, KeyboardInterrupt(), after=2)
            with pytest.raises(KeyboardInterrupt):
                extract(network, images, specs, out, batch_size=BATCH, compress="lzf")
        assert (tmp_path / "f.h5.part").exists()
        report = extract(network, images, specs, out, batch_size=BATCH, compress="lzf")
        assert report.status == status
        assert {p.name for p in tmp_path.iterdir()} == {"plain.h5", "f.h5"}
    assert content(out) == content(plain)


def test_a_large_compressed_store_loses_no_more_than_a_part(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, out = tmp_path / "plain.h5", tmp_path / "f.h5"
    extract(network, images, [attack("fgsm")], plain, batch_size=BATCH)
    monkeypatch.setattr(repsim.extract.shares, "_COMPRESSED_PART", 200_000)
    specs = [attack("fgsm")]
    with monkeypatch.context() as patch:
        cut_off(patch, KeyboardInterrupt(), after=7)  # clean, noise and fgsm of two batches
        with pytest.raises(KeyboardInterrupt):
            extract(network, images, specs, out, batch_size=BATCH, compress="lzf")
    folder = tmp_path / "f.h5.parts"
    assert sorted(path.name for path in folder.iterdir()) == [
        "set1.part0-of-4.h5", "set1.part1-of-4.h5", "set1.part2-of-4.h5.part",
    ]  # fmt: skip
    heard: list[int] = []
    real = Part.write

    def write(self: Part, condition: str, start: int, rows: dict[str, np.ndarray]) -> None:
        heard.append(len(rows["logits"]))
        real(self, condition, start, rows)

    monkeypatch.setattr(Part, "write", write)
    report = extract(network, images, specs, out, batch_size=BATCH, compress="lzf")
    assert report.status == "continued"
    assert sum(heard) == 3 * (SAMPLES - 2 * BATCH)
    assert content(out) == content(plain)
    assert report.bytes == out.stat().st_size + sum(p.stat().st_size for p in folder.iterdir())
    assert any("rows in 4 files in f.h5.parts/" in note for note in report.notes)


def test_a_disk_that_compression_may_spare_is_a_warning(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(path: Path) -> Any:
        return type("Usage", (), {"free": 1_000_000})

    monkeypatch.setattr(repsim.store.write.shutil, "disk_usage", small)
    heard = Heard()
    extract(network, images, [attack("fgsm")], tmp_path / "f.h5", compress="gzip", progress=heard)
    assert any("1 MB are free" in line for line in heard.lines)


# Packing


def test_one_file_of_many_and_back_to_other_bytes(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, out = tmp_path / "plain.h5", tmp_path / "f.h5"
    extract(network, images, [attack("fgsm")], plain, batch_size=BATCH)
    assert not pack(plain)
    with monkeypatch.context() as patch:
        patch.setattr(repsim.extract.shares, "_COMPRESSED_PART", 200_000)
        extract(network, images, [attack("fgsm")], out, batch_size=BATCH, compress="lzf")
    whole = content(out)
    with monkeypatch.context() as patch:  # cut off, the store is as it was
        cut_off(patch, KeyboardInterrupt(), after=1)
        with pytest.raises(KeyboardInterrupt):
            pack(out)
    assert content(out) == whole
    for compress in ("none", "gzip"):
        assert pack(out, compress=compress)
        assert {p.name for p in tmp_path.iterdir()} == {"plain.h5", "f.h5"}
        assert content(out) == content(plain)
        assert filters(out)["clean/layers/layer1.0"] == (None if compress == "none" else "gzip")
        with open_store(out) as store, open_store(plain) as expected:
            assert store.parts == []
            assert store.request == expected.request
            assert store.model == expected.model
            assert store.attack("fgsm") == expected.attack("fgsm")
            assert store.float32_layers() == expected.float32_layers()
        assert not pack(out, compress=compress)
    assert extract(network, images, [attack("fgsm")], out).status == "already done"
    with pytest.raises(UserError, match="--compress expects none, lzf, gzip; got 'zip'"):
        pack(out, compress="zip")


def test_the_command_that_packs(
    network: LoadedModel, images: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.h5"
    extract(network, images, [], out, batch_size=BATCH)
    for said in ("packed; ", "is one such file already; "):
        with pytest.raises(SystemExit) as ended:
            main(["pack", str(out), "--compress", "lzf"])
        assert ended.value.code == 0
        assert said in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "none.h5")])
    assert ended.value.code == 2
    assert "no such file" in capsys.readouterr().err
