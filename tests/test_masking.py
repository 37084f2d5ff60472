"""Signs of masked gradients: silent on sound networks, raised on networks broken on purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, draw
from repsim.masking import Flag, _judge, masking_flags

EPS = 0.15
NAMES = ["single_step", "black_box", "unbounded", "zero_gradient", "restart"]


class Rounded(nn.Module):
    """Pixels cut to a few levels: the gradient to them is 0 everywhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(torch.round(x * 8) / 8)


class Saturated(nn.Module):
    """Logits so large that the cross-entropy of most images is 0 to the last bit."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * 1e4


def raised(flags: list[Flag]) -> set[str]:
    assert [flag.name for flag in flags] == NAMES
    assert all(flag.text and "\n" not in flag.text for flag in flags)
    return {flag.name for flag in flags if flag.raised}


@pytest.fixture(scope="module")
def few(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 60)


@pytest.mark.parametrize("scenario", ["st", "at"])
def test_sound_networks_raise_none(
    scenario: str, checkpoints: dict[str, Path], few: ImageData
) -> None:
    loaded = load_model(checkpoints[scenario])
    flags = masking_flags(loaded, few, eps=EPS, samples=40)
    assert raised(flags) == set()
    assert masking_flags(loaded, few, eps=EPS, samples=40) == flags  # the same each time


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (Rounded, {"zero_gradient", "black_box", "unbounded"}),
        (Saturated, {"zero_gradient"}),
    ],
)
def test_broken_networks_raise_flags(
    broken: type[nn.Module], expected: set[str], checkpoints: dict[str, Path], few: ImageData
) -> None:
    loaded = load_model(checkpoints["st"])
    loaded = replace(loaded, model=broken(loaded.model))  # type: ignore[arg-type]
    assert raised(masking_flags(loaded, few, eps=EPS, samples=40)) >= expected


def test_no_image_right_no_flag(loaded: LoadedModel, few: ImageData) -> None:
    wrong = replace(few, labels=(few.labels + 1) % 10)
    with torch.no_grad():  # always says class 0
        loaded.model.encoder.linear.weight.zero_()  # type: ignore[union-attr]
        loaded.model.encoder.linear.bias.copy_(torch.eye(10)[0])  # type: ignore[union-attr]
    keep = torch.nonzero(wrong.labels != 0)[:, 0]
    assert masking_flags(loaded, wrong.take(keep), eps=EPS) == []


def judge(**fooled: int) -> dict[str, Flag]:
    """Of 100 images, how many each check fooled."""
    counts = {
        "fgsm": 40,
        "pgd": 60,
        "again": 60,
        "unbounded": 100,
        "square": 50,
        "zero": 0,
    } | fooled
    zero = counts.pop("zero")
    tensors = {name: torch.arange(100) < n for name, n in counts.items()}
    return {flag.name: flag for flag in _judge(tensors, torch.arange(100) < zero)}


@pytest.mark.parametrize(
    ("change", "name", "figure"),
    [
        ({"fgsm": 61}, "single_step", 0.01),
        ({"square": 63}, "black_box", 0.03),
        ({"unbounded": 99}, "unbounded", 0.01),
        ({"zero": 1}, "zero_gradient", 0.01),
        ({"again": 72}, "restart", -0.12),  # 40 of 100: 95% interval 30.3% to 50.3%
    ],
)
def test_each_flag_by_itself(change: dict[str, int], name: str, figure: float) -> None:
    assert {n for n, flag in judge().items() if flag.raised} == set()
    found = judge(**change)
    assert {n for n, flag in found.items() if flag.raised} == {name}
    assert found[name].figure == pytest.approx(figure)
    assert set(found[name].to_json()) == {"raised", "figure", "text"}
    assert not judge(again=68)["restart"].raised
    assert not judge(square=62)["black_box"].raised
