"""The transfer matrix: who is attacked, who looks, and what is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from repsim.attacks import parse_attack, pgd
from repsim.checkpoint import LoadedModel, load_model
from repsim.cross import cross
from repsim.data import ImageData, draw, to_float
from repsim.errors import UserError
from repsim.hooks import capture
from repsim.similarity import cka

EPS = 0.15
ATTACK = parse_attack("pgd,steps=5", eps=EPS)


@pytest.fixture
def networks(checkpoints: dict[str, Path]) -> list[LoadedModel]:
    return [load_model(checkpoints["st"]), load_model(checkpoints["at"])]


@pytest.fixture(scope="module")
def few(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 90)


def test_cells_are_those_of_a_plain_loop(networks: list[LoadedModel], few: ImageData) -> None:
    found = cross(networks, few, ATTACK, layers="layer3.*", batch_size=32)
    x, y = to_float(few.images), few.labels
    assert found.models == ["st", "at"]
    for i, made in enumerate(networks):
        attacked = pgd(made.model, x, y, eps=EPS, steps=5, ids=few.keys)
        for j, shown in enumerate(networks):
            with capture(shown.model, ["layer3.0.relu2"]) as layers, torch.no_grad():
                clean_right = shown.model(x).argmax(1) == y
                clean = layers["layer3.0.relu2"].clone()
                right = shown.model(attacked).argmax(1) == y
                after = layers["layer3.0.relu2"].clone()
            assert found.accuracy[i, j] == pytest.approx(
                float((right & clean_right).float().mean())
            )
            assert found.clean[j] == pytest.approx(float(clean_right.float().mean()))
            low, high = found.intervals[i, j]
            assert low <= found.accuracy[i, j] <= high
            same = cross(networks, few, ATTACK, layers="layer3.0.relu2", batch_size=90)
            assert same.alignment[i, j] == pytest.approx(cka(clean, after), abs=1e-4)
            assert same.last_third[i, j] == same.alignment[i, j]


def test_white_box_is_stronger_than_transfer(networks: list[LoadedModel], few: ImageData) -> None:
    found = cross(networks, few, ATTACK)
    for j in range(2):
        assert found.accuracy[j, j] < found.accuracy[1 - j, j]
        assert found.last_third[j, j] < found.last_third[1 - j, j]
    table = found.table()
    assert len(table) == 4
    assert set(table["made_on"]) == {"st", "at"}
    assert np.allclose(np.array(found.summary()["robust_accuracy"]), found.accuracy)


def test_a_network_called_clean_and_attacks_beyond_eps(
    networks: list[LoadedModel], few: ImageData
) -> None:
    called = [replace(networks[0], name="clean"), networks[1]]
    found, wanted = (cross(n, few, ATTACK) for n in (called, networks))
    assert np.array_equal(found.accuracy, wanted.accuracy)
    assert np.array_equal(found.alignment, wanted.alignment)
    smallest = cross(networks, few, parse_attack("fab,steps=5,eps=0.02", eps=EPS))
    assert smallest.accuracy[1, 1] > 0.5  # most are farther away than that


def test_networks_need_names_of_their_own(networks: list[LoadedModel], few: ImageData) -> None:
    with pytest.raises(UserError, match=r"two or more checkpoints of different names; got st$"):
        cross(networks[:1], few, ATTACK)
    files = parse_attack("pgd,surrogate=x.pt", eps=EPS)
    with pytest.raises(UserError, match=r"on each network in turn.*leave surrogate away"):
        cross(networks, few, files)
    with pytest.raises(UserError, match="different names; got st, st"):
        cross([networks[0], replace(networks[1], name="st")], few, ATTACK)
