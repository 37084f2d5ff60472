"""Every mistake ends with exit status 2 and one line; nothing is left behind or overwritten."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from repsim.cli import main

Case = Callable[[Path], list[str]]


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """A folder with good files: st.pt, at.pt, features.h5 (40 digits), other.h5 (other digits)."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, path in checkpoints.items():
        (folder / f"{name}.pt").write_bytes(path.read_bytes())
    model = ["--model", str(folder / "st.pt"), "--steps", "2", "--quiet"]
    run("extract", *model, "--samples", "40", "--out", str(folder / "features.h5"))
    run("extract", *model, "--samples", "40", "--split", "train", "--out", str(folder / "other.h5"))
    run("extract", *model, "--samples", "3", "--out", str(folder / "three.h5"))
    store = ["cka", str(folder / "features.h5"), "--quiet"]
    run(*store, "--out", str(folder / "a.h5"))
    run(*store, "--layers", "layer*", "--out", str(folder / "b.h5"))
    return folder


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_images(folder: Path, sizes: list[int], classes: list[str]) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i, size in enumerate(sizes):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


def write_npz(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    folder.mkdir()
    labels = np.arange(len(images)) % 2 if labels is None else labels
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", images=images, labels=labels, classes=["a", "b"])


def truncated(at: Path) -> list[str]:
    whole = (at / "st.pt").read_bytes()
    (at / "cut.pt").write_bytes(whole[: len(whole) // 2])
    return ["evaluate", "--model", str(at / "cut.pt")]


def no_checkpoint(at: Path) -> list[str]:
    (at / "text.pt").write_text("hello")
    return ["extract", "--model", str(at / "text.pt"), "--out", str(at / "new.h5")]


def other_architecture(at: Path) -> list[str]:
    torch.save(torch.load(at / "st.pt", weights_only=True)["state_dict"], at / "weights.pth")
    return [
        "evaluate",
        "--model",
        str(at / "weights.pth"),
        "--arch",
        "resnet20",
        "--data",
        "digits",
    ]


def runs_code(at: Path) -> list[str]:
    (at / "evil.pt").write_bytes(pickle.dumps(Malicious(at / "made")))
    return ["evaluate", "--model", str(at / "evil.pt")]


def older_store(at: Path) -> list[str]:
    (at / "old.h5").write_bytes((at / "features.h5").read_bytes())
    with h5py.File(at / "old.h5", "r+") as file:
        file.attrs["schema"] = 0
    return ["cka", str(at / "old.h5"), "--pair", "clean,adv", "--out", str(at / "cka.h5")]


def short_store(at: Path) -> list[str]:
    whole = (at / "features.h5").read_bytes()
    (at / "short.h5").write_bytes(whole[: len(whole) // 2])
    return ["cka", str(at / "short.h5"), "--pair", "clean,adv", "--out", str(at / "cka.h5")]


def other_samples(at: Path) -> list[str]:
    stores = [str(at / "features.h5"), str(at / "other.h5")]
    return ["cka", *stores, "--pair", "features:clean,other:clean", "--out", str(at / "cka.h5")]


def no_such_condition(at: Path) -> list[str]:
    return ["cka", str(at / "features.h5"), "--pair", "clean,pdg", "--out", str(at / "cka.h5")]


def three_samples(at: Path) -> list[str]:
    return ["cka", str(at / "three.h5"), "--pair", "clean,adv", "--out", str(at / "cka.h5")]


def pattern(at: Path) -> list[str]:
    model = str(at / "st.pt")
    return ["extract", "--model", model, "--layers", "layer1.0.cnv*", "--out", str(at / "n.h5")]


def no_head(at: Path) -> list[str]:
    content = torch.load(at / "st.pt", weights_only=True)
    torch.save({**content, "head": [], "scheme": "cl"}, at / "cl.pt")
    return ["extract", "--model", str(at / "cl.pt"), "--attack", "pgd", "--out", str(at / "n.h5")]


def no_train_folder(at: Path) -> list[str]:
    write_images(at / "images", [8], ["a", "b"])
    (at / "images" / "train").rename(at / "images" / "training")
    return ["train", "--data", str(at / "images"), "--out", str(at / "new.pt")]


def one_class(at: Path) -> list[str]:
    write_images(at / "images", [8], ["a"])
    return ["train", "--data", str(at / "images"), "--out", str(at / "new.pt")]


def mixed_sizes(at: Path) -> list[str]:
    write_images(at / "images", [8, 12], ["a", "b"])
    return ["train", "--data", str(at / "images"), "--out", str(at / "new.pt")]


def normalised_images(at: Path) -> list[str]:
    rng = np.random.default_rng(0)
    write_npz(at / "images", rng.normal(size=(8, 8, 8, 3)).astype(np.float32))
    return ["train", "--data", str(at / "images"), "--out", str(at / "new.pt")]


def nan_images(at: Path) -> list[str]:
    images = np.full((8, 8, 8, 3), 0.5, dtype=np.float32)
    images[3, 2, 1] = np.nan
    write_npz(at / "images", images)
    return ["train", "--data", str(at / "images"), "--out", str(at / "new.pt")]


def labels_out_of_range(at: Path) -> list[str]:
    write_npz(at / "images", np.zeros((8, 8, 8, 3), dtype=np.uint8), np.arange(8))
    return ["train", "--data", str(at / "images"), "--out", str(at / "new.pt")]


def extract_with(*options: str) -> Case:
    return lambda at: ["extract", "--model", str(at / "st.pt"), *options, "--out", str(at / "n.h5")]


def to_no_folder(command: str, *options: str) -> Case:
    return lambda at: [command, *(o.format(at=at) for o in options), "--out", str(at / "no" / "f")]


def below_a_file(command: str, *options: str) -> Case:
    return lambda at: [command, *(o.format(at=at) for o in options), "--out", str(at / "st.pt/f")]


def not_a_result(at: Path) -> list[str]:
    return ["plot", str(at / "features.h5"), "--out", str(at / "new.png")]


def another_store_there(at: Path) -> list[str]:
    model = ["--model", str(at / "at.pt"), "--samples", "40"]
    return ["extract", *model, "--out", str(at / "features.h5")]


def cka_with(*options: str) -> Case:
    return lambda at: ["cka", str(at / "features.h5"), *(o.format(at=at) for o in options)]


def diff_with(*options: str) -> Case:
    out = [] if "--out" in options else ["--out", "{at}/n.h5"]
    return lambda at: ["diff", *(o.format(at=at) for o in (*options, *out))]


def few_fooled(at: Path) -> list[str]:
    """All attacked images right but two of those that were right."""
    with h5py.File(at / "features.h5", "a") as file:
        labels = file["samples/label"][:]
        exact = np.eye(10, dtype=np.float32)[labels]
        file["conditions/clean/logits"][:] = exact
        exact[:2] = np.roll(exact[:2], 1, axis=1)
        file["conditions/pgd/logits"][:] = exact
    return ["cka", str(at / "features.h5"), "--among", "fooled", "--out", str(at / "n.h5")]


def no_logits(at: Path) -> list[str]:
    with h5py.File(at / "features.h5", "a") as file:
        file["conditions/clean/logits"][:] = 0
    return ["cka", str(at / "features.h5"), "--among", "right", "--out", str(at / "n.h5")]


def classes_too_small(at: Path) -> list[str]:
    with h5py.File(at / "features.h5", "a") as file:
        file["samples/label"][:] = np.arange(40)
    return ["cka", str(at / "features.h5"), "--within", "class", "--out", str(at / "n.h5")]


def train_with(*options: str) -> Case:
    return lambda at: ["train", "--data", "digits", *options, "--out", str(at / "new.pt")]


def evaluate_with(*more: str) -> Case:
    def case(at: Path) -> list[str]:
        return ["evaluate", "--samples", "20", *(part.format(at=at) for part in more)]

    return case


def softmax_model(at: Path) -> list[str]:
    (at / "soft.py").write_text(
        "from torch import nn\ndef net(classes, channels):\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(64, classes), nn.Softmax(1))\n"
    )
    return ["evaluate", "--model", f"{at}/soft.py:net", "--data", "digits"]


def not_a_probe(at: Path) -> list[str]:
    torch.save({"weight": torch.zeros(3)}, at / "probe.pt")
    attack = f"probe,layer=avgpool,weights={at}/probe.pt"
    return ["evaluate", "--model", str(at / "st.pt"), "--attack", attack]


CASES: dict[str, tuple[Case, str]] = {
    "no network": (evaluate_with(), "expects one network"),
    "networks without --cross": (evaluate_with("{at}/st.pt", "{at}/at.pt"), "--cross"),
    "--cross of one": (evaluate_with("--cross", "{at}/st.pt"), "two or more checkpoints"),
    "--cross of twice the same": (
        evaluate_with("--cross", "{at}/st.pt", "{at}/st.pt"),
        "different names",
    ),
    "--cross with two attacks": (
        evaluate_with("--cross", "{at}/st.pt", "{at}/at.pt", "--attack", "unseen"),
        "one attack",
    ),
    "--cross with --smoothed": (
        evaluate_with("--cross", "{at}/st.pt", "{at}/at.pt", "--smoothed", "3"),
        "--smoothed",
    ),
    "--smoothed with a layer's attack": (
        evaluate_with("{at}/st.pt", "--smoothed", "3", "--attack", "feature"),
        "inner layer",
    ),
    "no such surrogate": (
        evaluate_with("{at}/st.pt", "--attack", "pgd,surrogate={at}/none.pt"),
        "none.pt",
    ),
    "no such loss": (
        evaluate_with("{at}/st.pt", "--attack", "pgd,loss=x"),
        "ce, dlr, margin, unit-ce, kl",
    ),
    "no such layer": (evaluate_with("{at}/st.pt", "--attack", "feature,layer=layer9"), "layer3"),
    "no such version": (
        evaluate_with("{at}/st.pt", "--attack", "autoattack,version=best"),
        "standard, plus, rand",
    ),
    "a probe without weights": (evaluate_with("{at}/st.pt", "--attack", "probe"), "weights=FILE"),
    "not a probe": (not_a_probe, "tensors weight (classes, features)"),
    "softmax for logits": (softmax_model, "what goes into the softmax"),
    "truncated checkpoint": (truncated, "cut short"),
    "not a checkpoint": (no_checkpoint, "expected a checkpoint"),
    "another architecture": (other_architecture, "lacks layer1.1"),
    "a pickle that would run code": (runs_code, "could run code"),
    "a store of an older schema": (older_store, "schema"),
    "a store cut short": (short_store, "short.h5"),
    "stores of other samples": (other_samples, "same"),
    "no such condition": (no_such_condition, "pgd"),
    "fewer than four samples": (three_samples, "4"),
    "a pattern that matches nothing": (pattern, "layer1.0.conv1"),
    "no linear head": (no_head, "train one first"),
    "no train folder": (no_train_folder, "train/"),
    "one class": (one_class, "at least 2 classes"),
    "mixed sizes": (mixed_sizes, "--image-size"),
    "normalised images": (normalised_images, "[0, 1]"),
    "NaN in images": (nan_images, "[0, 1]"),
    "labels out of range": (labels_out_of_range, "0 to 1"),
    "negative eps": (extract_with("--eps", "-0.1"), "eps expects"),
    "eps in 0-255 units": (extract_with("--eps", "8"), "8/255"),
    "eps in 0-255 units in an attack": (extract_with("--attack", "pgd,eps=8"), "8/255"),
    "l2 without an eps": (extract_with("--norm", "l2"), "eps of its own"),
    "unknown attack": (extract_with("--attack", "pdg"), "pgd"),
    "unknown setting": (extract_with("--attack", "pgd,step=3"), "steps"),
    "samples 0": (extract_with("--samples", "0"), "--samples expects"),
    "unknown data": (extract_with("--data", "cifar"), "cifar10"),
    "data not there": (extract_with("--data", "cifar100", "--data-root", "nowhere"), "--download"),
    "no GPU": (extract_with("--device", "cuda:7"), "--device"),
    "unknown option": (extract_with("--sample", "3"), "--samples"),
    "extract to no folder": (to_no_folder("extract", "--model", "{at}/st.pt"), "no folder"),
    "train to no folder": (to_no_folder("train", "--data", "digits"), "no folder"),
    "cka to no folder": (to_no_folder("cka", "{at}/features.h5"), "no folder"),
    "plot to no folder": (to_no_folder("plot", "{at}/features.h5"), "no folder"),
    "extract below a file": (below_a_file("extract", "--model", "{at}/st.pt"), "folder"),
    "train below a file": (below_a_file("train", "--data", "digits"), "folder"),
    "not a result": (not_a_result, "result"),
    "a figure's name for a result": (cka_with("--out", "{at}/cka.png"), "cka.h5"),
    "a result over a store": (cka_with("--out", "{at}/other.h5"), "no result"),
    "mean without std": (train_with("--mean", "0.5"), "--std"),
    "std of 0": (train_with("--mean", "0.5", "--std", "0"), "above 0"),
    "two means for one channel": (
        train_with("--mean", "0.5,0.5", "--std", "1"),
        "expects 1 number,",
    ),
    "another store is there": (another_store_there, "--overwrite"),
    "too few permutations": (cka_with("--permutations", "5", "--out", "{at}/n.h5"), "at least 19"),
    "fewer than none": (cka_with("--permutations", "-1", "--out", "{at}/n.h5"), "at least 19"),
    "influence of a side on itself": (
        cka_with("--pair", "clean,clean", "--influence", "{at}/i.csv", "--out", "{at}/n.h5"),
        "two different sides",
    ),
    "influence to no folder": (
        cka_with("--influence", "{at}/no/i.csv", "--out", "{at}/n.h5"),
        "no folder",
    ),
    "fooled by nothing": (
        cka_with("--pair", "clean,noise", "--among", "fooled", "--out", "{at}/n.h5"),
        "expects an attack",
    ),
    "too few fooled": (few_fooled, "leaves 2 of 40 images"),
    "logits that say nothing": (no_logits, "no linear head"),
    "within batches": (
        cka_with("--within", "class", "--estimator", "minibatch", "--out", "{at}/n.h5"),
        "debiased or biased",
    ),
    "classes too small": (classes_too_small, "at least 4 images"),
    "permutations of another measure": (
        lambda at: [
            "compare",
            str(at / "features.h5"),
            "--measure",
            "procrustes",
            "--permutations",
            "99",
        ],
        "--permutations",
    ),
    "diff of a store": (diff_with("{at}/features.h5", "{at}/a.h5"), "another file"),
    "diff of other layers": (diff_with("{at}/a.h5", "{at}/b.h5"), "same layers"),
    "diff of one file": (lambda at: ["diff", str(at / "a.h5")], "SECOND"),
    "diff over a store": (
        diff_with("{at}/a.h5", "{at}/a.h5", "--out", "{at}/features.h5"),
        "--overwrite",
    ),
    "a mask without a null": (
        lambda at: ["plot", str(at / "a.h5"), "--mask", "max", "--out", str(at / "n.png")],
        "--permutations",
    ),
    "a mask of a curve": (
        lambda at: [
            "plot",
            str(at / "a.h5"),
            "--kind",
            "diagonal",
            "--mask",
            "zero",
            "--out",
            str(at / "n.png"),
        ],
        "--kind heatmap",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in shelf.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    make, expected = CASES[name]
    arguments = make(tmp_path)
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert lines[-1].startswith("repsim: ")
    assert expected in lines[-1]
    assert "Traceback" not in said.err
    # Lines of progress may stand before it; of the mistake there is one.
    assert sum(line.startswith("repsim: ") for line in lines) == 1
    assert said.out == ""
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "made").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(shelf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert run("extract", "--model", str(shelf / "st.pt"), "--out", str(folder / "f.h5")) == 2
    assert list(folder.iterdir()) == []


def test_debug_shows_the_traceback(shelf: Path) -> None:
    from repsim.errors import UserError

    with pytest.raises(UserError):
        main(["evaluate", "--model", str(shelf / "none.pt"), "--debug"])
