"""A store can be killed at any moment, and says in one line what is wrong with a file."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import repsim.store.read
import repsim.store.write
from repsim.errors import UserError
from repsim.store import (
    SCHEMA,
    Background,
    Column,
    Condition,
    DiskFull,
    Part,
    chunk_rows,
    match_rows,
    open_store,
    require_space,
    show_bytes,
    storage_dtype,
    stored_bytes,
)
from repsim.store.layout import filters

SAMPLES = 10
IDS = np.arange(SAMPLES, dtype=np.uint64) * 7 + 2**63
LAYERS = ["conv1", "layer1.0", "layer1.0@2"]


def condition(name: str, kind: str, samples: int = SAMPLES) -> Condition:
    layer = {"reduce": "flatten", "shape": [2, 3], "reason": ""}
    columns = {
        "inputs": Column((1, 2, 2), "uint8" if kind == "clean" else "float32"),
        "logits": Column((10,), "float32"),
        "loss": Column((), "float32"),
        "moved": Column((), "bool"),
        "norm": Column((), "float32", {"norm": "linf"}),
        **{f"layers/{name}": Column((6,), "float16", layer) for name in LAYERS},
    }
    attack = None if kind == "clean" else {"name": name, "control": kind == "control"}
    return Condition(name, kind, attack, columns, {"torch": "2"})


def values_of(name: str) -> dict[str, np.ndarray]:
    """Rows of a condition; every name has others."""
    rng = np.random.default_rng(sum(map(ord, name)))
    return {
        "inputs": rng.integers(0, 2, (SAMPLES, 1, 2, 2)).astype(
            np.uint8 if name == "clean" else np.float32
        ),
        "logits": rng.standard_normal((SAMPLES, 10)).astype(np.float32),
        "loss": rng.random(SAMPLES).astype(np.float32),
        "moved": np.arange(SAMPLES) % 2 == 1,
        "norm": rng.random(SAMPLES).astype(np.float32),
        **{
            f"layers/{layer}": rng.standard_normal((SAMPLES, 6)).astype(np.float16)
            for layer in LAYERS
        },
    }


def create(path: Path, *conditions: Condition) -> Part:
    attrs = {
        "repsim_version": "0",
        "request": {"seed": 0},
        "layers": LAYERS,
        "model": {"name": "net", "sha256": "abc"},
        "data": {"name": "digits", "split": "test"},
    }
    samples = {
        "index": np.arange(SAMPLES),
        "label": np.arange(SAMPLES) % 10,
        "id": IDS,
    }
    return Part.create(path, attrs, samples, conditions)


def write_store(path: Path, kinds: dict[str, str] | None = None) -> Path:
    kinds = kinds or {"clean": "clean", "noise": "control", "pgd": "attack"}
    part = create(path.with_suffix(".part"), *(condition(n, k) for n, k in kinds.items()))
    for name in kinds:
        part.write(name, 0, values_of(name))
    part.mark(kinds, SAMPLES)
    part.finish(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "features.h5")


# Layout


@given(samples=st.integers(1, 5000), row_bytes=st.integers(1, 1 << 24))
@settings(max_examples=200, deadline=None)
def test_chunks_are_of_a_good_size_and_waste_little(samples: int, row_bytes: int) -> None:
    rows = chunk_rows(samples, row_bytes)
    chunks = -(-samples // rows)
    assert 1 <= rows <= samples
    assert rows == 1 or rows * row_bytes <= 1 << 20
    assert rows == samples or row_bytes > 1 << 18 or rows * row_bytes >= 1 << 18
    assert chunks * rows - samples < chunks


def test_stored_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    columns = {"a": Column((1000,), "float16"), "b": Column((3, 32, 32), "float32")}
    part = create(tmp_path / "x.part", Condition("c", "attack", {}, columns))
    with h5py.File(part.path) as file:
        size = sum(file[f"conditions/c/{name}"].id.get_storage_size() for name in columns)
    assert size == stored_bytes(columns.values(), SAMPLES)
    part.close()


def test_sizes_are_shown_in_three_digits() -> None:
    assert [show_bytes(n) for n in (12, 614_400_000, 2_500_000_000_000)] == [
        "12 B", "614 MB", "2.5 TB",
    ]  # fmt: skip


# Types


def test_ordinary_layers_are_stored_in_float16() -> None:
    x = torch.randn(64, 100)
    for features in (x, x.relu(), x + 20, x * 1000, x * 0.01, torch.zeros(8, 3), x[:, :0]):
        assert storage_dtype(features) == (torch.float16, "")


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (torch.randn(64, 100) * 4000, "65504"),
        (torch.randn(64, 100) + 1e3, "mean"),
        (torch.randn(64, 100) * 1e-3 + 0.1, "mean"),
        (torch.full((64, 100), 3.0), "infinite"),
        (torch.randn(64, 100) * 1e-6, "normal numbers"),
        (torch.randn(64, 100) * 1e-30, "normal numbers"),
        (torch.randn(1, 100), "one sample"),
    ],
)
def test_layers_that_float16_would_spoil_are_not(features: torch.Tensor, reason: str) -> None:
    dtype, said = storage_dtype(features)
    assert dtype == torch.float32
    assert reason in said


def test_the_offset_is_measured_over_all_features() -> None:
    """One constant feature of 1000 dominates float16's error no more than its own rounding."""
    x = torch.randn(64, 100, dtype=torch.float64)
    x[:, 0] = 200.0
    centred = x - x.mean(0)
    ratio = x.mean(0).norm() / (centred.square().mean(0).sum().sqrt())
    assert ratio < 30
    assert storage_dtype(x.float()) == (torch.float16, "")
    x[:, 0] = 400.0
    assert storage_dtype(x.float())[0] == torch.float32


# Writing


def test_only_bytes_inside_chunks_change_once_a_file_is_ready(tmp_path: Path) -> None:
    """A kill at any moment of the writing leaves all metadata as they were."""
    part = create(tmp_path / "x.part", condition("clean", "clean"), condition("pgd", "attack"))
    part.close()
    before = np.fromfile(part.path, np.uint8)
    chunks = []
    with h5py.File(part.path) as file:
        data_sets: list[h5py.Dataset] = []
        file.visititems(lambda _, x: data_sets.append(x) if isinstance(x, h5py.Dataset) else None)
        for dataset in data_sets:
            if dataset.chunks:
                for i in range(dataset.id.get_num_chunks()):
                    info = dataset.id.get_chunk_info(i)
                    chunks.append(slice(info.byte_offset, info.byte_offset + info.size))

    part = Part.reopen(part.path)
    assert part is not None
    for name in ("clean", "pgd"):
        part.write(name, 0, {k: v[:7] for k, v in values_of(name).items()})
        part.write(name, 7, {k: v[7:] for k, v in values_of(name).items()})
    part.mark(["clean", "pgd"], SAMPLES)
    while_open = np.fromfile(part.path, np.uint8)
    part.close()
    after = np.fromfile(part.path, np.uint8)

    assert (while_open != before).any()
    for now in (while_open, after):
        assert len(now) == len(before)
        changed = now != before
        changed[:48] = False  # the superblock's flag that some process has the file open
        for chunk in chunks:
            changed[chunk] = False
        assert not changed.any()
    assert (after[:48] == before[:48]).all()


def test_rows_count_as_written_after_a_mark_only(tmp_path: Path) -> None:
    part = create(tmp_path / "x.part", condition("clean", "clean"))
    part.write("clean", 0, {k: v[:6] for k, v in values_of("clean").items()})
    assert part.written("clean") == 0
    part.mark(["clean"], 6)
    part.close()
    again = Part.reopen(part.path)
    assert again is not None
    assert again.written("clean") == 6
    assert not again.complete
    assert again.conditions == {"clean": None}
    assert again.samples == SAMPLES
    assert again.reasons("clean") == dict.fromkeys(LAYERS, "")
    again.close()


def test_what_is_not_ready_is_not_trusted(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "y.part"
    assert Part.reopen(path) is None
    for content in (b"", b"not HDF5", store.read_bytes()[:5000]):
        path.write_bytes(content)
        assert Part.reopen(path) is None
    path.unlink()
    create(path, condition("clean", "clean")).close()
    with h5py.File(path, "r+") as file:
        file.attrs["ready"] = False
    assert Part.reopen(path) is None
    with h5py.File(path, "r+") as file:
        file.attrs["ready"] = True
        del file["conditions/clean/written"]
    assert Part.reopen(path) is None


def test_an_error_while_a_file_is_made_leaves_nothing(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    before = store.read_bytes()
    monkeypatch.setattr(repsim.store.write, "_add", fail)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "x.part", condition("clean", "clean"))
    with pytest.raises(KeyboardInterrupt):
        Part.extend(tmp_path / "x.part", store, [condition("fgsm", "attack")])
    assert list(tmp_path.iterdir()) == [store]
    assert store.read_bytes() == before


def test_extending_keeps_what_was_there(tmp_path: Path, store: Path) -> None:
    before = store.read_bytes()
    part = Part.extend(tmp_path / "x.part", store, [condition("fgsm", "attack")])
    assert part.written("pgd") == SAMPLES
    assert part.written("fgsm") == 0
    part.write("fgsm", 0, values_of("fgsm"))
    part.mark(["fgsm"], SAMPLES)
    assert store.read_bytes() == before
    part.finish(store)
    assert list(tmp_path.iterdir()) == [store]
    with open_store(store) as opened:
        assert opened.conditions == ["clean", "noise", "fgsm", "pgd"]
        for name in opened.conditions:
            for layer in LAYERS:
                stored = opened.representation(name, layer).rows(0, SAMPLES)
                assert (stored == values_of(name)[f"layers/{layer}"]).all()


def test_a_copy_is_not_ready_while_it_is_extended(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: list[tuple[bool, bool]] = []
    real = repsim.store.write._add

    def look(file: h5py.File, *arguments: Any) -> None:
        on_disk.append((bool(file.attrs["ready"]), bool(file.attrs["complete"])))
        real(file, *arguments)

    monkeypatch.setattr(repsim.store.write, "_add", look)
    part = Part.extend(tmp_path / "x.part", store, [condition("fgsm", "attack")])
    assert on_disk == [(False, False)]
    part.discard()


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x.part"
    create(path, condition("clean", "clean")).close()
    code = (
        "import h5py, sys\n"
        f"file = h5py.File({str(path)!r}, 'r+', libver=('v108', 'v110'))\n"
        "print('open', flush=True)\nsys.stdin.read()\nfile.close()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"
    try:
        with pytest.raises(UserError, match="another process is writing"):
            Part.reopen(path)
        with pytest.raises(UserError, match="another process is writing"):
            create(path, condition("clean", "clean"))
    finally:
        other.communicate()
    part = Part.reopen(path)
    assert part is not None
    part.discard()
    assert not path.exists()


def test_a_full_disk_is_said_and_what_was_marked_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = create(tmp_path / "x.part", condition("clean", "clean"))
    part.write("clean", 0, {k: v[:5] for k, v in values_of("clean").items()})
    part.mark(["clean"], 5)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repsim.store.write, "_sync", full)
    with pytest.raises(DiskFull, match="disk is full; free some space"):
        part.mark(["clean"], 9)
    monkeypatch.undo()
    part.close()
    again = Part.reopen(part.path)
    assert again is not None
    assert again.written("clean") == 5
    again.close()


def test_too_small_a_disk_is_refused(tmp_path: Path) -> None:
    require_space(tmp_path / "x.h5", 1000)
    with pytest.raises(UserError, match=r"expected 1e\+06 TB of free disk space; there are"):
        require_space(tmp_path / "x.h5", 10**18)


# The writing thread


def test_jobs_run_in_order_behind_the_caller() -> None:
    done: list[int] = []
    gate = threading.Event()
    with Background(waiting=3) as writer:
        writer.submit(gate.wait)
        for i in range(3):
            writer.submit(lambda i=i: done.append(i))
        assert done == []
        gate.set()
        writer.finish()
    assert done == [0, 1, 2]


def test_a_caller_that_is_ahead_waits() -> None:
    gate, started = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        gate.wait()

    with Background(waiting=1) as writer:
        writer.submit(slow)
        started.wait()
        writer.submit(gate.wait)
        third = threading.Thread(target=writer.submit, args=[gate.wait])
        third.start()
        third.join(0.1)
        waited = third.is_alive()
        gate.set()
        third.join()
        writer.finish()
    assert waited


def test_an_error_of_a_job_stops_the_rest_and_is_raised() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), Background(waiting=1) as writer:  # noqa: PT012
        writer.submit(fail)
        for i in range(50):  # far more than may wait: no deadlock
            writer.submit(lambda i=i: done.append(i))
    assert done == []
    with pytest.raises(OSError, match="gone"), Background() as writer:  # noqa: PT012
        writer.submit(fail)
        writer.finish()


def test_an_error_of_the_caller_drops_what_waits() -> None:
    done: list[int] = []
    gate, started = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        gate.wait()

    with pytest.raises(KeyError), Background(waiting=3) as writer:  # noqa: PT012
        writer.submit(slow)
        writer.submit(lambda: done.append(1))
        started.wait()
        threading.Timer(0.05, gate.set).start()
        raise KeyError
    assert done == []


# Reading


def test_everything_is_read_back(store: Path) -> None:
    with open_store(store) as opened:
        assert opened.name == "features"
        assert len(opened) == SAMPLES
        assert opened.layers == LAYERS
        assert opened.conditions == ["clean", "noise", "pgd"]
        assert opened.model["sha256"] == "abc"
        assert opened.data["name"] == "digits"
        assert (opened.ids == IDS).all()
        assert opened.ids.dtype == np.uint64
        assert (opened.labels == np.arange(SAMPLES) % 10).all()
        assert (opened.index == np.arange(SAMPLES)).all()
        assert [opened.kind(n) for n in opened.conditions] == ["clean", "control", "attack"]
        assert opened.attack("clean") is None
        assert opened.attack("adv") == {"name": "pgd", "control": False}
        values = values_of("pgd")
        for column in ("logits", "loss", "norm", "moved"):
            found = opened.column("pgd", column)
            assert found is not None
            assert (found == values[column]).all()
        assert opened.column("pgd", "first_success") is None
        assert (opened.inputs("pgd").numpy() == values["inputs"]).all()
        assert torch.equal(
            opened.inputs("clean"), torch.from_numpy(values_of("clean")["inputs"]) / 255
        )
        right = int((values["logits"].argmax(1) == opened.labels).sum())
        assert opened.accuracy("pgd") == (right, SAMPLES)
        assert [r.layer for r in opened.representations("adv")] == LAYERS
        representation = opened.representation("adv", "layer1.0@2")
        assert (representation.model, representation.condition) == ("features", "pgd")
        assert (representation.samples, representation.features) == (SAMPLES, 6)
        assert representation.shape == (2, 3)
        rows = representation.rows(2, 5)
        assert rows.dtype == np.float32
        assert (rows == values["layers/layer1.0@2"][2:5]).all()
    with open_store(store, name="sl") as opened:
        assert opened.representation("clean", "conv1").model == "sl"


def test_what_is_counted_is_read_in_blocks(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(store, "r+") as file:
        right = np.arange(SAMPLES) % 3 != 1
        for name, kept in (("clean", right), ("pgd", right & (np.arange(SAMPLES) % 2 == 0))):
            logits = np.eye(10)[(np.arange(SAMPLES) + ~kept) % 10]
            file[f"conditions/{name}/logits"][:] = logits
    for size in (3, 10, 8192):
        monkeypatch.setattr(repsim.store.read, "_BLOCK", size)
        with open_store(store) as opened:
            assert opened.accuracy("clean") == (7, SAMPLES)
            assert opened.accuracy("pgd") == (4, SAMPLES)
            assert opened.unmoved("pgd") == SAMPLES // 2


def test_compressed_chunks_divide_the_batch() -> None:
    for batch, row_bytes, rows in (
        (128, 1 << 15, 32),
        (100, 1 << 15, 25),
        (128, 100, 128),
        (127, 1 << 15, 32),
    ):
        column = Column((row_bytes // 2,), "float16", compress="gzip", batch=batch)
        assert filters(column, 1000)["chunks"] == (rows, row_bytes // 2)
    assert filters(column, 20)["chunks"][0] == 20


def test_rows_come_in_any_order(store: Path) -> None:
    with open_store(store) as opened:
        representation = opened.representation("pgd", "conv1")
        whole = values_of("pgd")["layers/conv1"].astype(np.float32)
        rng = np.random.default_rng(0)
        for order in (rng.permutation(SAMPLES), np.array([3, 3, 4, 5, 0]), np.array([], int)):
            again = representation.reordered(order)
            assert again.samples == len(order)
            assert (again.rows(0, len(order)) == whole[order]).all()
            assert (again.rows(1, 4) == whole[order[1:4]]).all()
            twice = again.reordered(np.arange(len(order))[::-1])
            assert (twice.rows(0, len(order)) == whole[order[::-1]]).all()
            images = opened.inputs("pgd", order).numpy()
            assert (images == values_of("pgd")["inputs"][order]).all()
        for wrong in ([-1], [SAMPLES]):
            with pytest.raises(UserError, match="rows expect numbers from 0 to 9"):
                representation.reordered(np.array(wrong))


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_rows_are_matched_by_id(wanted: list[int], ids: list[int]) -> None:
    found = match_rows(np.array(wanted, np.uint64), np.array(ids, np.uint64))
    used = found[found >= 0]
    assert len(set(used)) == len(used)
    for sample, row in zip(wanted, found, strict=True):
        assert row == -1 or ids[row] == sample
    for sample in set(wanted):
        hits = sum(1 for s, r in zip(wanted, found, strict=True) if s == sample and r >= 0)
        assert hits == min(wanted.count(sample), ids.count(sample))


# What can be wrong with a file


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_store(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing.h5")
    assert "no such file" in refusal(tmp_path)


def test_not_hdf5(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"\x80\x02"):
        (tmp_path / "x.h5").write_bytes(content)
        assert "no HDF5 file" in refusal(tmp_path / "x.h5")


def test_every_cut_is_noticed(store: Path) -> None:
    whole = store.read_bytes()
    for size in (8, 100, 1000, len(whole) // 2, len(whole) - 1):
        store.write_bytes(whole[:size])
        assert "cut short" in refusal(store)


def test_another_hdf5_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["similarity"] = np.eye(3)
    assert "something else" in refusal(tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("schema", "said"), [(SCHEMA - 1, "an older repsim"), (SCHEMA + 1, "a newer repsim")]
)
def test_another_schema(store: Path, schema: int, said: str) -> None:
    with h5py.File(store, "r+") as file:
        file.attrs["schema"] = schema
    assert said in refusal(store)


def test_unfinished(store: Path) -> None:
    with h5py.File(store, "r+") as file:
        file.attrs["complete"] = False
    assert "finished" in refusal(store)


@pytest.mark.parametrize(
    "missing", ["samples/id", "conditions/pgd/logits", "conditions/clean/layers/conv1"]
)
def test_damaged(store: Path, missing: str) -> None:
    with h5py.File(store, "r+") as file:
        del file[missing]
    assert "damaged" in refusal(store)


def test_damaged_attributes(store: Path) -> None:
    for name, value in (("layers", "[1"), ("model", b"\xff"), ("request", 3)):
        original = store.read_bytes()
        with h5py.File(store, "r+") as file:
            file.attrs[name] = value
        assert "damaged" in refusal(store)
        store.write_bytes(original)


def test_names_that_are_not_there(store: Path) -> None:
    with open_store(store) as opened:
        with pytest.raises(UserError, match=r"clean, noise, pgd, or adv; got 'pdg'"):
            opened.representation("pdg", "conv1")
        with pytest.raises(UserError, match=r"3 layers; got 'layer1.1'; near: layer1.0"):
            opened.representation("clean", "layer1.1")


def test_adv_is_the_only_attack(tmp_path: Path) -> None:
    kinds = {"clean": "clean", "noise": "control"}
    none = open_store(write_store(tmp_path / "none.h5", kinds))
    with none, pytest.raises(UserError, match="only clean, noise"):
        none.resolve("adv")
    kinds |= {"pgd": "attack", "fgsm": "attack"}
    with open_store(write_store(tmp_path / "two.h5", kinds)) as opened:
        with pytest.raises(UserError, match="there are fgsm, pgd; name one"):
            opened.resolve("adv")
        assert opened.resolve("fgsm") == "fgsm"


def test_the_file_is_as_documented(store: Path) -> None:
    """What other tools read, without repsim."""
    with h5py.File(store) as file:
        assert file.attrs["schema"] == SCHEMA
        assert bool(file.attrs["complete"])
        assert json.loads(file.attrs["layers"]) == LAYERS
        assert json.loads(file.attrs["model"])["sha256"] == "abc"
        assert json.loads(file["conditions/pgd"].attrs["attack"])["name"] == "pgd"
        layer = file["conditions/pgd/layers/layer1.0"]
        assert layer.shape == (SAMPLES, 6)
        assert layer.chunks is not None
        assert layer.attrs["reduce"] == "flatten"
        assert json.loads(layer.attrs["shape"]) == [2, 3]
        assert {"index", "label", "id"} == set(file["samples"])
