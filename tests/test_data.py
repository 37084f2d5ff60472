"""Data sets: what is read, how images are known, and what is said when they are not there."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import repsim.data.load
from repsim.data import (
    KNOWN,
    ImageData,
    as_image_data,
    batches,
    channel_statistics,
    default_eps,
    draw,
    load_data,
    to_float,
)
from repsim.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data folder of this machine's is found by accident."""
    monkeypatch.delenv("REPSIM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def some(n: int = 60, classes: int = 4, seed: int = 0) -> ImageData:
    """Random images; a class for about every fourth, the first class rarer."""
    rng = np.random.default_rng(seed)
    labels = np.maximum(rng.integers(-1, classes, n), 0)
    labels[:classes] = range(classes)
    return as_image_data(
        rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8), labels,
        classes=[f"class {i}" for i in range(classes)], name="some", split="test",
    )  # fmt: skip


def write_npz(
    folder: Path, split: str, *, n: int = 20, classes: int = 4, side: int = 6
) -> ImageData:
    """As unpack.py writes it: (N, H, W, C), int64, names as str."""
    rng = np.random.default_rng(len(split))
    images = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int64) % classes
    names = np.asarray([f"name{i}" for i in range(classes)])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{split}.npz", images=images, labels=labels, classes=names)
    return as_image_data(images, labels, classes=names, name=folder.name, split=split)


def write_folders(folder: Path, data: ImageData) -> None:
    for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        place = folder / data.split / data.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(place / f"{i}.png")


def assert_one_line(error: pytest.ExceptionInfo[UserError]) -> None:
    assert "\n" not in str(error.value)


# --- digits ----------------------------------------------------------------------------------


def test_digits(digits_train: ImageData, digits_test: ImageData) -> None:
    assert (len(digits_train), len(digits_test)) == (1297, 500)
    for data, split in ((digits_train, "train"), (digits_test, "test")):
        assert data.images.shape == (len(data), 1, 8, 8)
        assert data.images.dtype == torch.uint8
        assert data.images.max() == 255  # 16 grey levels over the whole range
        assert data.labels.dtype == torch.int64
        assert data.classes == tuple("0123456789")
        assert (data.name, data.split) == ("digits", split)
        share = torch.bincount(data.labels).double() / len(data)
        assert ((share - 0.1).abs() < 0.006).all()


def test_digits_splits_share_no_image(digits_train: ImageData, digits_test: ImageData) -> None:
    assert not set(digits_train.ids.tolist()) & set(digits_test.ids.tolist())


def test_digits_are_the_same_everywhere(digits_train: ImageData, digits_test: ImageData) -> None:
    """A checkpoint is known to fit by this; another split of scikit-learn's would show here."""
    assert digits_test.fingerprint == "086f2485c512c5c160b7157d265187b3"
    assert digits_train.fingerprint == "db3cbd015e98d50b6ea618f33ac2def0"


# --- identity --------------------------------------------------------------------------------


def test_ids_are_of_the_content_alone() -> None:
    data = some()
    assert data.ids.dtype == np.uint64
    assert data.ids.shape == (60,)
    assert len(set(data.ids.tolist())) == 60
    twice = data.take(torch.tensor([3, 5, 3]))
    assert twice.ids[0] == twice.ids[2] == data.ids[3]
    assert twice.ids[1] == data.ids[5]
    assert (data.keys.numpy().view(np.uint64) == data.ids).all()
    changed = data.images.clone()
    changed[0, 0, 0, 0] ^= 1
    other = as_image_data(changed, data.labels, name="other", split="train")
    assert other.ids[0] != data.ids[0]
    assert (other.ids[1:] == data.ids[1:]).all()


def test_ids_depend_on_shape_not_on_memory() -> None:
    data = some()
    last = as_image_data(
        data.images.contiguous(memory_format=torch.channels_last),
        data.labels,
        name="x",
        split="test",
    )
    assert (last.ids == data.ids).all()
    flat = torch.zeros(2, 1, 4, 9, dtype=torch.uint8), torch.zeros(2, 1, 6, 6, dtype=torch.uint8)
    ids = [as_image_data(x, [0, 1], name="x", split="test").ids[0] for x in flat]
    assert ids[0] != ids[1]


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_fingerprint_does_not_depend_on_the_order(random: object) -> None:
    data = some()
    order = list(range(60))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = as_image_data(
        data.images[order], data.labels[order], classes=data.classes, name="x", split="train"
    )
    assert shuffled.fingerprint == data.fingerprint


@given(st.integers(0, 59), st.integers(0, 2), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_fingerprint_sees_one_pixel_and_one_label(i: int, c: int, h: int, w: int) -> None:
    data = some()
    pixels, labels = data.images.clone(), data.labels.clone()
    pixels[i, c, h, w] ^= 1
    labels[i] = (labels[i] + 1) % 4
    for images, y in ((pixels, data.labels), (data.images, labels)):
        other = as_image_data(images, y, classes=data.classes, name="some", split="test")
        assert other.fingerprint != data.fingerprint
    fewer = as_image_data(
        data.images[1:], data.labels[1:], classes=data.classes, name="some", split="test"
    )
    assert fewer.fingerprint != data.fingerprint


def test_a_part_keeps_the_fingerprint_of_the_whole() -> None:
    data = some()
    part = draw(data, 10)
    assert part.fingerprint == data.fingerprint
    assert part.take(torch.arange(3)).fingerprint == data.fingerprint
    assert torch.equal(data.images[part.index], part.images)
    assert torch.equal(data.labels[part.index], part.labels)


# --- the draw --------------------------------------------------------------------------------


@given(st.integers(1, 80), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_draw_is_the_same_for_any_order_of_the_source(samples: int, random: object) -> None:
    data = some()
    wanted = draw(data, samples)
    assert len(wanted) == min(samples, 60)
    order = list(range(60))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = draw(data.take(torch.tensor(order)), samples)
    assert (found.ids == wanted.ids).all()
    assert torch.equal(found.images, wanted.images)
    assert torch.equal(found.labels, wanted.labels)


@given(st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_draw_is_balanced_until_a_class_runs_out(samples: int) -> None:
    data = some()
    there = torch.bincount(data.labels, minlength=4)
    assert there.min() < there.max() - 3  # the test sees a class that runs out
    taken = torch.bincount(draw(data, samples).labels, minlength=4)
    assert taken.sum() == samples
    for a in range(4):
        for b in range(4):
            if taken[a] < there[a]:  # could have given more: no other class gave two more
                assert taken[b] <= taken[a] + 1


def test_smaller_draws_are_part_of_larger_ones() -> None:
    data = some()
    drawn = [draw(data, samples).ids.tolist() for samples in (5, 17, 40, 60, 1000)]
    for smaller, larger in pairwise(drawn):
        assert set(smaller) <= set(larger)
        assert smaller == [i for i in larger if i in set(smaller)]  # in the same order
    assert len(drawn[-1]) == 60


def test_draw_of_duplicates() -> None:
    images = np.zeros((6, 4, 4), dtype=np.uint8)
    data = as_image_data(images, [0, 1, 0, 1, 0, 1], name="x", split="test")
    assert sorted(draw(data, 4).labels.tolist()) == [0, 0, 1, 1]


def test_draw_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="--samples expects at least 1; got 0"):
        draw(some(), 0)


def test_a_draw_of_digits_is_balanced(digits_test: ImageData) -> None:
    assert Counter(draw(digits_test, 200).labels.tolist()) == dict.fromkeys(range(10), 20)


# --- arrays ----------------------------------------------------------------------------------


def test_layouts_of_arrays() -> None:
    x = RNG.integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
    y = [0, 1, 2, 1, 0]
    wanted = torch.from_numpy(x)

    def read(images: object) -> torch.Tensor:
        data = as_image_data(images, y, name="x", split="test")
        assert data.images.is_contiguous()
        assert data.index.tolist() == [0, 1, 2, 3, 4]
        assert data.classes == ("0", "1", "2")
        return data.images

    assert torch.equal(read(x), wanted)
    assert torch.equal(read(x.transpose(0, 2, 3, 1)), wanted)
    assert torch.equal(read(torch.from_numpy(x)), wanted)
    assert torch.equal(read(x[:, 0]), wanted[:, :1])
    assert torch.equal(read(x[:, :1].transpose(0, 2, 3, 1)), wanted[:, :1])
    assert torch.equal(read(x[..., ::-1]), wanted.flip(3))  # a view with negative strides
    for dtype in (np.float32, np.float64):
        assert torch.equal(read(x.astype(dtype) / 255), wanted)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((2, 4, 4), 1.01), [0, 1], r"pixels in \[0, 1\]; got \[1.01, 1.01\]"),
        (np.full((2, 4, 4), -0.1), [0, 1], r"pixels in \[0, 1\]"),
        (np.full((2, 4, 4), np.nan), [0, 1], r"pixels in \[0, 1\]; got \[nan"),
        (np.zeros((2, 4, 4), np.int64), [0, 1], "uint8, or float in .* got torch.int64"),
        (np.zeros((2, 4, 4, 4), np.uint8), [0, 1], r"shape .* got \(2, 4, 4, 4\)"),
        (np.zeros((2, 16), np.uint8), [0, 1], r"shape .* got \(2, 16\)"),
        (np.zeros((2, 4, 4), object), [0, 1], "images expect an array of numbers"),
        ([np.zeros((4, 4)), np.zeros((5, 5))], [0, 1], "images expect an array of numbers"),
        (np.zeros((2, 4, 4), np.uint8), [0], r"one whole number an image \(2\); got \(1,\)"),
        (np.zeros((2, 4, 4), np.uint8), [[0], [1]], "one whole number an image"),
        (np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], "one whole number an image"),
        (np.zeros((2, 4, 4), np.uint8), ["a", "b"], "labels expect an array of numbers"),
        (np.zeros((2, 4, 4), np.uint8), [-1, 1], "labels expect 0 to 1; got -1 to 1"),
        (np.zeros((2, 4, 4), np.uint8), [0, 0], "at least 2 classes; got 1"),
        (np.zeros((0, 4, 4), np.uint8), np.zeros(0, np.int64), "expected images; got none"),
    ],
)
def test_arrays_that_are_no_images(images: object, labels: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        as_image_data(images, labels, name="mine", split="test")
    assert "mine/test" in str(error.value)


def test_labels_beyond_the_classes() -> None:
    with pytest.raises(UserError, match="labels expect 0 to 1; got 0 to 2"):
        as_image_data(
            np.zeros((2, 4, 4), np.uint8), [0, 2], classes=["a", "b"], name="x", split="test"
        )


def test_batches_are_the_rows_in_order() -> None:
    data = some()
    parts = list(batches(data, 25, "cpu"))
    assert [len(p[1]) for p in parts] == [25, 25, 10]
    images, labels, keys = (torch.cat(column) for column in zip(*parts, strict=True))
    assert images.dtype == torch.float32
    assert torch.equal(images, data.images.float() / 255)
    assert torch.equal(images, to_float(data.images))
    assert torch.equal(labels, data.labels)
    assert torch.equal(keys, data.keys)


def test_channel_statistics_are_those_of_the_floats() -> None:
    data = some()
    mean, std = channel_statistics(data.images)
    pixels = to_float(data.images).double().transpose(0, 1).flatten(1)
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=5e-5)
    assert std == pytest.approx(pixels.std(1, correction=0).tolist(), abs=5e-5)
    flat = torch.full((3, 1, 4, 4), 128, dtype=torch.uint8)
    assert channel_statistics(flat)[1][0] > 0


def test_default_eps() -> None:
    assert default_eps("cifar10") == default_eps("stl10") == 8 / 255
    assert default_eps("mnist") == default_eps("fashion-mnist") == 0.3
    assert default_eps("digits") == 0.15
    assert default_eps("mine") == 8 / 255


# --- npz -------------------------------------------------------------------------------------


def test_npz_as_unpack_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    wanted = {split: write_npz(folder, split) for split in ("train", "test")}
    for split, data in wanted.items():
        found = load_data(str(folder), split)
        assert torch.equal(found.images, data.images)
        assert torch.equal(found.labels, data.labels)
        assert found.classes == data.classes
        assert (found.name, found.split) == ("mine", split)  # never a path
        assert found.fingerprint == data.fingerprint
    assert wanted["train"].fingerprint != wanted["test"].fingerprint


def test_npz_without_class_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", images=np.zeros((3, 4, 4, 3), np.uint8), labels=[0, 1, 2])
    assert load_data(str(tmp_path), "test").classes == ("0", "1", "2")


class RunsCode:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("pwned", "w"))  # type: ignore[return-value]


@pytest.mark.parametrize("which", ["images", "labels", "classes"])
def test_an_object_array_is_refused_and_runs_nothing(tmp_path: Path, which: str) -> None:
    arrays = {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "labels": np.arange(2),
        "classes": np.asarray(["a", "b"]),
    }
    arrays[which] = np.asarray([RunsCode(), RunsCode()], dtype=object)
    np.savez(tmp_path / "test.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"expected an \.npz of plain arrays") as error:
        load_data(str(tmp_path), "test")
    assert_one_line(error)
    assert not Path("pwned").exists()


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "test.npz"
    write_npz(tmp_path, "test")
    whole = path.read_bytes()
    cut = whole[: len(whole) // 2]
    for content in (b"", b"text", cut, pickle.dumps(RunsCode())):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"test\.npz: expected an \.npz of plain arrays"):
            load_data(str(tmp_path), "test")
    assert not Path("pwned").exists()
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"expected an \.npz of plain arrays"):
        load_data(str(tmp_path), "test")
    np.savez(path, pixels=np.zeros(3), labels=np.zeros(3))
    with pytest.raises(UserError, match="expected arrays images and labels; got pixels, labels"):
        load_data(str(tmp_path), "test")


# --- folders of class folders ----------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    wanted = some()
    write_folders(tmp_path / "mine", wanted)
    (tmp_path / "mine" / "test" / ".cache").mkdir()
    (tmp_path / "mine" / "test" / "class 0" / "notes.txt").write_text("no image")
    (tmp_path / "mine" / "test" / "class 0" / "._0.png").write_text("a Mac's shadow of a file")
    found = load_data(str(tmp_path / "mine"), "test")
    assert found.classes == wanted.classes
    assert found.name == "mine"
    assert Counter(zip(found.ids.tolist(), found.labels.tolist(), strict=True)) == Counter(
        zip(wanted.ids.tolist(), wanted.labels.tolist(), strict=True)
    )
    assert found.fingerprint == wanted.fingerprint
    assert (draw(found, 20).ids == draw(wanted, 20).ids).all()


def test_class_folders_of_grey_images_and_of_a_mix(tmp_path: Path) -> None:
    grey = as_image_data(
        RNG.integers(0, 256, (6, 5, 5), dtype=np.uint8), [0, 1, 0, 1, 0, 1],
        classes=["a", "b"], name="x", split="train",
    )  # fmt: skip
    write_folders(tmp_path, grey)
    found = load_data(str(tmp_path), "train")
    assert found.images.shape == (6, 1, 5, 5)
    assert found.fingerprint == grey.fingerprint

    colour = RNG.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "train" / "b" / "z.png")
    Image.fromarray(colour).convert("RGBA").save(tmp_path / "train" / "b" / "z2.png")
    mixed = load_data(str(tmp_path), "train")
    assert mixed.images.shape == (8, 3, 5, 5)
    assert torch.equal(mixed.images[6].permute(1, 2, 0), torch.from_numpy(colour))
    assert torch.equal(mixed.images[7], mixed.images[6])
    assert torch.equal(mixed.images[0, 0], found.images[0, 0])
    assert torch.equal(mixed.images[0, 0], mixed.images[0, 2])


def test_mixed_sizes_are_refused_and_image_size_mends_it(tmp_path: Path) -> None:
    write_folders(tmp_path, some())
    Image.new("RGB", (9, 7)).save(tmp_path / "test" / "class 1" / "large.png")
    with pytest.raises(
        UserError, match=r"images of one size; got .*6×6 .*9×7 .*large\.png.*give --image-size"
    ) as error:
        load_data(str(tmp_path), "test")
    assert_one_line(error)
    assert load_data(str(tmp_path), "test", image_size=8).images.shape == (61, 3, 8, 8)


def test_folders_that_are_no_data(tmp_path: Path) -> None:
    def fails(match: str, split: str = "train") -> None:
        with pytest.raises(UserError, match=match) as error:
            load_data(str(tmp_path), split)
        assert_one_line(error)
        assert str(tmp_path) in str(error.value)

    fails(r"expected train\.npz or a folder train/ with a folder for each class; there is neither")
    (tmp_path / "train").mkdir()
    fails("at least 2 classes; got 0")
    only = tmp_path / "train" / "only"
    only.mkdir()
    Image.new("RGB", (4, 4)).save(only / "a.png")
    fails("at least 2 classes; got 1")
    other = tmp_path / "train" / "other"
    other.mkdir()
    fails("other: expected image files; got none")
    (other / "b.png").write_bytes(b"no image")
    fails(r"b\.png: expected an image")
    Image.fromarray(np.full((4, 4), 4000, dtype=np.uint16)).save(other / "b.png")
    fails(r"b\.png: .*8 bits")  # cut off at 255 it would be white
    Image.new("RGB", (4, 4)).save(other / "b.png")
    assert len(load_data(str(tmp_path), "train")) == 2
    (tmp_path / "test" / "only").mkdir(parents=True)
    (tmp_path / "test" / "third").mkdir()
    fails(r"same class folders in train/ and test/; only one of them has other, third", "test")


@pytest.mark.parametrize("size", [4, 6, 13])
def test_image_size_of_arrays(tmp_path: Path, size: int) -> None:
    data = write_npz(tmp_path / "mine", "test")
    found = load_data(str(tmp_path / "mine"), "test", image_size=size)
    assert found.images.shape == (20, 3, size, size)
    assert found.images.dtype == torch.uint8
    assert torch.equal(found.labels, data.labels)
    mean = to_float(found.images).mean((2, 3)) - to_float(data.images).mean((2, 3))
    assert mean.abs().max() < 0.1
    assert torch.equal(found.images, data.images) == (size == 6)


# --- where it is looked for ------------------------------------------------------------------


def test_a_folder_comes_before_the_root_and_the_root_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: tmp_path / name for name in ("given", "environment", "data")}
    sizes = dict(zip(places, (11, 12, 13), strict=True))
    for name, place in places.items():
        write_npz(place / "mine", "test", n=sizes[name])

    assert len(load_data("mine", "test")) == sizes["data"]  # ./data
    monkeypatch.setenv("REPSIM_DATA", str(places["environment"]))
    assert len(load_data("mine", "test")) == sizes["environment"]
    assert len(load_data("mine", "test", root=places["given"])) == sizes["given"]
    write_npz(tmp_path / "mine", "test", n=14)  # a folder of that name right here
    assert len(load_data("mine", "test", root=places["given"])) == 14
    assert len(load_data("./mine", "test", root=places["given"])) == 14


@pytest.mark.parametrize("name", ["cifar10", "mine"])
def test_a_folder_of_that_name_that_holds_no_data_hides_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()  # results, perhaps
    write_npz(tmp_path / "data" / name, "test", n=15)
    assert len(load_data(name, "test")) == 15


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPSIM_DATA", "/nowhere")
    with pytest.raises(UserError, match=r"got 'cifar'; near: cifar10.*REPSIM_DATA") as error:
        load_data("cifar", "test")
    assert "/nowhere" in str(error.value)
    assert_one_line(error)
    with pytest.raises(UserError, match="there is no folder no/such/folder"):
        load_data("no/such/folder", "test")
    with pytest.raises(UserError, match="--split expects train or test; got 'val'"):
        load_data("digits", "val")


FILES = {
    "cifar10": "cifar-10-batches-py/",
    "cifar100": "cifar-100-python/",
    "svhn": "test_32x32.mat",
    "stl10": "stl10_binary/",
    "mnist": "MNIST/raw/",
    "fashion-mnist": "FashionMNIST/raw/",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_known_data_set_without_files(name: str, split: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_data(name, split, root=tmp_path / "root")
    message = str(error.value)
    assert f"--data {name}" in message
    assert FILES[name] in message  # what is missing
    assert f"{split}.npz" in message
    assert str(tmp_path / "root") in message  # where it was looked for
    for typed in ("--download", "--data FOLDER", "--data-root", "REPSIM_DATA"):  # what to type
        assert typed in message
    assert_one_line(error)
    assert not (tmp_path / "root").exists()


def test_every_name_is_tested() -> None:
    assert set(FILES) | {"digits"} == set(KNOWN)


def test_a_failing_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(UserError, match=r"--download of cifar10 to .*: no route to host"):
        load_data("cifar10", "test", root=tmp_path, download=True)


# --- torchvision's files ---------------------------------------------------------------------
#
# Tiny files in the real formats are read by torchvision's own readers; only the checksums of
# the real files are taken out.


def write_cifar(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, list[int]]:
    reader = getattr(torchvision.datasets, "CIFAR10" if name == "cifar10" else "CIFAR100")
    kind, names = ("", "label_names") if name == "cifar10" else ("fine_", "fine_label_names")
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    images, labels = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), [0, 1, 2, 3, 4, 5]
    rows = images.transpose(0, 3, 1, 2).reshape(6, -1)
    for file, part in (("train_file", slice(0, 4)), ("test_file", slice(4, 6))):
        content = {"data": rows[part], f"{kind}labels": labels[part]}
        (folder / file).write_bytes(pickle.dumps(content))
    count = 10 if name == "cifar10" else 100
    (folder / "meta").write_bytes(pickle.dumps({names: [f"c{i}" for i in range(count)]}))
    monkeypatch.setattr(reader, "train_list", [["train_file", None]])
    monkeypatch.setattr(reader, "test_list", [["test_file", None]])
    monkeypatch.setattr(reader, "meta", {"filename": "meta", "key": names, "md5": None})
    return images, labels


def write_mnist(root: Path, folder: str) -> tuple[np.ndarray, list[int]]:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    images, labels = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8), [3, 1, 4, 1, 5, 9]
    for prefix, part in (("train", slice(0, 4)), ("t10k", slice(4, 6))):
        x, y = images[part], np.asarray(labels[part], dtype=np.uint8)
        header = b"".join(n.to_bytes(4, "big") for n in (0x803, *x.shape))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + x.tobytes())
        header = b"".join(n.to_bytes(4, "big") for n in (0x801, len(y)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + y.tobytes())
    return images[..., None], labels


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    images, labels = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), [1, 2, 0, 9, 5, 0]
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        y = np.asarray([label or 10 for label in labels[part]], dtype=np.uint8)[:, None]  # 0 is 10
        content = {"X": images[part].transpose(1, 2, 3, 0), "y": y}
        scipy.io.savemat(root / f"{split}_32x32.mat", content)
    files = {split: ["", f"{split}_32x32.mat", None] for split in ("train", "test")}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", files)
    monkeypatch.setattr(
        "torchvision.datasets.svhn.check_integrity", lambda path, md5: Path(path).is_file()
    )
    return images, labels


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    images, labels = RNG.integers(0, 256, (6, 96, 96, 3), dtype=np.uint8), [0, 1, 2, 3, 9, 5]
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        images[part].transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # column by column
        (np.asarray(labels[part], dtype=np.uint8) + 1).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"c{i}" for i in range(10)) + "\n")
    reader = torchvision.datasets.STL10
    for split in ("train", "test"):
        files = [[f"{split}_X.bin", None], [f"{split}_y.bin", None]]
        monkeypatch.setattr(reader, f"{split}_list", files)
    return images, labels


@pytest.mark.parametrize("name", FILES)
def test_torchvisions_files_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("cifar"):
        images, labels = write_cifar(tmp_path, name, monkeypatch)
    elif name.endswith("mnist"):
        images, labels = write_mnist(tmp_path, "MNIST" if name == "mnist" else "FashionMNIST")
    elif name == "svhn":
        images, labels = write_svhn(tmp_path, monkeypatch)
    else:
        images, labels = write_stl10(tmp_path, monkeypatch)
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        found = load_data(name, split, root=tmp_path)
        assert found.images.dtype == torch.uint8
        wanted = torch.from_numpy(images[part].transpose(0, 3, 1, 2).copy())
        assert torch.equal(found.images, wanted)
        assert found.labels.dtype == torch.int64
        assert found.labels.tolist() == labels[part]
        assert len(found.classes) == (100 if name == "cifar100" else 10)
        assert (found.name, found.split) == (name, split)


def test_damaged_files_are_said_to_be_so(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"torchvision cannot read MNIST/raw/ in .*--download"):
        load_data("mnist", "test", root=tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(RunsCode()))  # of another checksum: not read
    with pytest.raises(UserError, match="found none that is whole"):
        load_data("cifar10", "test", root=tmp_path)
    assert not Path("pwned").exists()


# --- known by content ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["npz", "folders"])
def test_a_known_data_set_under_another_name(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_npz(tmp_path / "npz", "train", n=30, classes=10)
    test = write_npz(tmp_path / "npz", "test", n=30, classes=10)
    write_folders(tmp_path / "folders", train)
    write_folders(tmp_path / "folders", test)
    folder = str(tmp_path / layout)
    assert load_data(folder, "test").name == layout
    monkeypatch.setattr(repsim.data.load, "FINGERPRINTS", {test.fingerprint: "cifar10"})
    for source, root in ((folder, None), (layout, tmp_path)):
        assert load_data(source, "test", root=root).name == "cifar10"
        assert load_data(source, "train", root=root).name == "cifar10"
        assert load_data(source, "test", root=root, image_size=8).name == (
            "cifar10"
            if layout == "npz"
            else "folders"  # files are brought to size as they are read
        )
    assert load_data(folder, "test").fingerprint == test.fingerprint


def test_a_test_split_that_cannot_be_read_does_not_hinder_training(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine", "train", n=30, classes=10)
    (tmp_path / "mine" / "test.npz").write_bytes(b"cut short")
    assert load_data(str(tmp_path / "mine"), "train").name == "mine"


# --- ones own --------------------------------------------------------------------------------


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "def blobs(split):\n"
        "    images = np.random.default_rng(len(split)).random((9, 5, 5))\n"
        "    return images, np.arange(9) % 3, ['a', 'b', 'c']\n"
        "def plain(split):\n"
        "    return blobs(split)[:2]\n"
        "def images_only(split):\n"
        "    return blobs(split)[0]\n"
        "def no_split():\n"
        "    return blobs('test')\n"
        "constant = 3\n"
    )
    data = load_data(f"{path}:blobs", "train")
    assert data.images.shape == (9, 1, 5, 5)
    assert data.classes == ("a", "b", "c")
    assert (data.name, data.split) == ("blobs", "train")
    assert load_data(f"{path}:blobs", "test").fingerprint != data.fingerprint
    assert load_data(f"{path}:plain", "train").classes == ("0", "1", "2")
    assert load_data(f"{path}:plain", "train", image_size=8).images.shape == (9, 1, 8, 8)
    for name, message in (
        ("images_only", r"\(images, labels\) or \(images, labels, classes\); got ndarray"),
        ("no_split", r"a callable split -> \(images, labels\)"),
        ("constant", r"a callable split -> \(images, labels\)"),
        ("nothing", "has no 'nothing'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_data(f"{path}:{name}", "train")
        assert_one_line(error)
