"""What is kept is used again only for the same content; layers of the same content are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repsim.attacks import parse_attack
from repsim.checkpoint import LoadedModel, load_model
from repsim.compare import compare, compare_all
from repsim.data import ImageData, draw
from repsim.errors import UserError
from repsim.extract import extract
from repsim.interchange import compare_arrays
from repsim.live import GramCache, compare_models
from repsim.live.repeated import digests, first_of
from repsim.result import difference
from repsim.similarity import ArrayRepresentation

ATTACK = (
    "def push(model, inputs, labels, *, eps, **_):\n    return (inputs + {} * eps).clip(0, 1)\n"
)
NETWORK = """import torch
from torch import nn
def make(**_):
    torch.manual_seed({})
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
"""


@pytest.fixture(scope="module")
def few(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 48)


def push(file: Path, size: float) -> object:
    file.write_text(ATTACK.format(size))
    return parse_attack(f"{file}:push", eps=0.1)


def test_an_attack_that_was_edited_is_another(
    loaded: LoadedModel, few: ImageData, tmp_path: Path
) -> None:
    cache, file, store = GramCache(tmp_path / "grams"), tmp_path / "mine.py", tmp_path / "a.h5"

    def made(size: float) -> int:
        return compare_models([loaded], few, [[push(file, size)]], cache=cache).made

    assert [made(1), made(1), made(-1), made(1)] == [3, 0, 1, 0]
    extract(loaded, few, [push(file, 1)], store)
    assert extract(loaded, few, [push(file, 1)], store).status == "already done"
    with pytest.raises(UserError, match="its condition push was made otherwise: source"):
        extract(loaded, few, [push(file, -1)], store)


def test_a_network_that_was_edited_is_another(few: ImageData, tmp_path: Path) -> None:
    cache, file, store = GramCache(tmp_path / "grams"), tmp_path / "net.py", tmp_path / "n.h5"

    def network(seed: int) -> LoadedModel:
        file.write_text(NETWORK.format(seed))
        return load_model(f"{file}:make", channels=1, image_size=8)

    def made(seed: int) -> int:
        return compare_models([network(seed)], few, layers="all", cache=cache).made

    assert [made(0), made(0), made(1), made(0)] == [1, 0, 1, 0]
    extract(network(0), few, [], store, layers="all")
    with pytest.raises(UserError, match="store of another request: model"):
        extract(network(1), few, [], store, layers="all")


def test_weights_that_were_changed_in_memory_are_others(
    loaded: LoadedModel, few: ImageData, tmp_path: Path
) -> None:
    cache = GramCache(tmp_path / "grams")
    assert compare_models([loaded], few, cache=cache).made == 1
    with torch.no_grad():
        next(loaded.model.parameters()).mul_(1.01)
    assert compare_models([loaded], few, cache=cache).made == 1


def test_batches_know_their_images_and_repeated_layers(loaded: LoadedModel, few: ImageData) -> None:
    spec = parse_attack("fgsm", eps=0.15)
    options = {"layers": "all", "estimator": "minibatch", "batch_size": 12}
    live = compare_models([loaded], few, [[spec]], **options)  # type: ignore[arg-type]
    whole = compare_models([loaded], few, [[spec]], layers="all")
    assert live.everything.duplicate_of == whole.everything.duplicate_of
    assert any(first is not None for first in whole.everything.duplicate_of or [])
    assert live.everything.sample_ids == whole.everything.sample_ids
    matrix = live.everything.matrix("clean", "fgsm")
    assert "x_duplicate_of" in matrix.coords
    nothing = difference(matrix, matrix)
    assert float(abs(nothing["lower"]).max()) == 0  # paired: no interval around no difference


def test_contents_add_up_in_any_order() -> None:
    rows = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    rows[2] = rows[0]
    one, two = digests(rows, 0), digests(rows, 1)
    assert (one + two == two + one).all()
    assert (one != two).all()
    keys = [("m", "clean", "a"), ("m", "clean", "b"), ("m", "clean", "c")]
    assert first_of(keys, one + two) == [None, None, 0]
    # Equal in one batch only is not equal; nor are two networks' layers one.
    assert first_of(keys, one + digests(torch.stack([rows[0], rows[1], rows[1]]), 1)) == [None] * 3
    keys[2] = ("other", "clean", "c")
    assert first_of(keys, one + two) == [None, None, None]


class Turning(nn.Module):
    """Tokens, then the same memory read with images and tokens the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.turned, self.fc = nn.Linear(8, 6), nn.Identity(), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x.flatten(1)[:, :56].reshape(len(x), 7, 8))
        return self.fc(self.turned(y.transpose(0, 1)).mean(1))


def test_a_view_with_other_rows_is_another_layer(loaded: LoadedModel, few: ImageData) -> None:
    torch.manual_seed(0)
    network = replace(loaded, model=type(loaded.model)(Turning(), [0.0], [1.0]).eval())
    live = compare_models([network], draw(few, 7), layers="all", batch_size=7)
    assert live.everything.pairs.value[0, 1] < 0.9


def test_samples_are_those_in_full_batches() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 6))
    found = compare_all([ArrayRepresentation(rows)], estimator="minibatch", batch_size=16)
    assert found.samples == 48
    one = compare([ArrayRepresentation(rows)], [ArrayRepresentation(rows)])
    assert one.attrs["samples"] == 50


@pytest.mark.parametrize("kind", [int, str])
def test_arrays_with_ids_can_be_subtracted(kind: type) -> None:
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(2, 40, 6))
    y += x
    ids = np.array([kind(i) for i in draws.permutation(1000)[:40]])
    order = draws.permutation(40)
    one = compare_arrays(x, y, ids_x=ids, ids_y=ids)
    two = compare_arrays(x, y[order], ids_x=ids, ids_y=ids[order])
    found = difference(one, two)
    assert float(abs(found["upper"] - found["lower"]).max()) < 1e-6
    other = compare_arrays(x, y, ids_x=ids[::-1], ids_y=ids[::-1])
    assert float(abs(difference(one, other)["upper"]).max()) > 1e-3
