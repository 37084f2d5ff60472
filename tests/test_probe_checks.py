"""Images, stores and attacks that do not belong together are refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repsim.attacks import parse_attack
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, draw
from repsim.errors import UserError
from repsim.extract import extract
from repsim.probe import probe_live, probe_stores
from repsim.probe.retrain import retrain
from repsim.store import Store, open_store

EPS = 0.1


@pytest.fixture(scope="module")
def few(digits_train: ImageData, digits_test: ImageData) -> tuple[ImageData, ImageData]:
    return draw(digits_train, 300), draw(digits_test, 120)


def with_images_of(data: ImageData, other: ImageData, count: int) -> ImageData:
    """The data and the first images of other data, under its own name and split."""
    return replace(
        data,
        images=torch.cat([data.images, other.images[:count]]),
        labels=torch.cat([data.labels, other.labels[:count]]),
        index=torch.cat([data.index, torch.arange(count) + 10_000]),
    )


def stored(
    loaded: LoadedModel, data: ImageData, path: Path, steps: int = 2, **options: Any
) -> Store:
    attack = parse_attack(f"pgd,steps={steps}", eps=EPS)
    extract(loaded, data, [attack], path, layers=["layer2.0", "avgpool"], **options)
    return open_store(path)


def test_a_few_training_images_are_left_out_of_the_tests(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], tmp_path: Path
) -> None:
    train, test = few
    one = with_images_of(train, test, 1)
    options = {"attacks": [parse_attack("pgd,steps=2", eps=EPS)], "adaptive": True}
    live = probe_live(loaded, one, test, layers=["layer2.0", "avgpool"], **options)  # type: ignore[arg-type]
    with (
        stored(loaded, one, tmp_path / "train.h5") as a,
        stored(loaded, test, tmp_path / "test.h5") as b,
    ):
        found = probe_stores(a, b, model=loaded, **options)  # type: ignore[arg-type]
    for report in (live, found):
        assert len(report.labels) == len(report.ids) == 119
        assert test.ids[0] not in report.ids
        assert set(report.table["samples"]) == {119}
        assert report.provenance["test"]["samples"] == 119
        assert any("1 of 120 test images are in the training split" in x for x in report.notes)
    for key, predicted in live.predictions.items():
        assert (found.predictions[key] == predicted).mean() > 0.97
    retrained = retrain(loaded, one, test, layers=["layer3.0"], epochs=1, batch_size=64)
    assert len(retrained.labels) == 119
    with pytest.raises(UserError, match="not trained on; 2 of 120"):
        probe_live(loaded, with_images_of(train, test, 2), test)


def test_stores_that_do_not_belong_together(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], tmp_path: Path
) -> None:
    train, test = few
    with (
        stored(loaded, train, tmp_path / "train.h5") as a,
        stored(loaded, test, tmp_path / "test.h5", steps=3) as b,
        stored(loaded, draw(test, 40), tmp_path / "part.h5") as part,
    ):
        with pytest.raises(UserError, match="two splits; both are of digits/test; make that"):
            probe_stores(part, b)
        with pytest.raises(UserError, match=r"condition pgd .* differ: steps 2 and 3; name one"):
            probe_stores(a, b, train_on=["pgd"])
        report = probe_stores(a, b, train_on=["clean"])
        assert report.provenance["attacks"]["pgd"]["params"]["steps"] == 3
        assert report.provenance["train_attacks"] == {"clean": None}
        aimed = parse_attack("pgd,steps=1", eps=EPS)
        told = probe_stores(a, b, model=loaded, attacks=[aimed], adaptive=True)
        assert told.provenance["adaptive_attacks"]["pgd"]["params"]["steps"] == 1
        assert any("steps 3 and 1" in note for note in told.notes)
        b.data["classes"] = [*b.data["classes"][1:], "other"]
        with pytest.raises(UserError, match="train and test expect the same classes"):
            probe_stores(a, b)


def test_training_on_the_same_attack_is_recorded(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], tmp_path: Path
) -> None:
    with (
        stored(loaded, few[0], tmp_path / "train.h5") as a,
        stored(loaded, few[1], tmp_path / "test.h5") as b,
    ):
        report = probe_stores(a, b, train_on=["both:pgd"])
        said = report.provenance
        assert said["train_attacks"]["pgd"] == said["attacks"]["pgd"] == a.attack("pgd")


def test_reduced_stores_are_refused_before_any_work(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*arguments: object) -> None:
        raise AssertionError("probes are trained")

    monkeypatch.setattr("repsim.probe.work.fit_probes", never)
    attack = parse_attack("pgd,steps=2", eps=EPS)
    with (
        stored(loaded, few[0], tmp_path / "train.h5", reduce="avgpool") as a,
        stored(loaded, few[1], tmp_path / "test.h5", reduce="avgpool") as b,
        pytest.raises(UserError, match=r"whole layers; .* layer2.0 reduced to 32 of 512 values"),
    ):
        probe_stores(a, b, model=loaded, attacks=[attack], adaptive=True)


def test_the_number_of_classes_is_that_of_the_data(
    loaded: LoadedModel, few: tuple[ImageData, ImageData]
) -> None:
    """Not that of the labels that happen to be among the test images."""
    test = few[1].take(torch.nonzero(few[1].labels < 3)[:, 0])
    report = probe_live(loaded, few[0], test, layers=["avgpool"])
    assert report.classes == 10
    assert len(np.unique(report.labels)) == 3
