"""Crops and flips: real crops, every position alike, each image's own draw."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from repsim.augment import AUGMENTATIONS, augment, default_augmentation
from repsim.data import KNOWN
from repsim.errors import UserError
from repsim.keyed import keyed_uniform


def images(batch: int, channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """No two pixels of an image alike in all channels, none black: a crop is found in one place."""
    shape = (batch, channels, height, width)
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def places(original: Tensor, found: Tensor, pad: int) -> list[tuple[int, int, bool]]:
    """All (row, column, mirrored) at which `found` is a crop of the padded image, by search."""
    padded = F.pad(original, (pad, pad, pad, pad))
    height, width = found.shape[1:]
    return [
        (row, column, mirrored)
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
        for mirrored in (False, True)
        if torch.equal(
            (crop := padded[:, row : row + height, column : column + width]),
            found.flip(2) if mirrored else found,
        )
        and crop.any()
    ]


def found_places(kind: str, batch: int, seed: int = 0) -> list[tuple[int, int, bool]]:
    x = images(batch)
    out = augment(x, kind, keys=torch.arange(batch) * 31, seed=seed)
    where = [places(original, found, pad=2) for original, found in zip(x, out, strict=True)]
    assert all(len(w) == 1 for w in where)  # each a crop of its own image, and at one place
    return [w[0] for w in where]


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_each_output_is_a_crop_of_its_padded_image_at_every_place_alike(kind: str) -> None:
    where = found_places(kind, 1000)
    counts = torch.zeros(5, 5)
    for row, column, _ in where:
        counts[row, column] += 1
    assert counts.min() > 0  # the corners too
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 0.01
    mirrored = sum(m for _, _, m in where)
    if kind == "crop":
        assert mirrored == 0
    else:
        assert stats.binomtest(mirrored, len(where)).pvalue > 0.01


def test_an_eighth_of_the_side_is_4_pixels_at_32() -> None:
    x = torch.full((2000, 1, 32, 32), 255, dtype=torch.uint8)
    out = augment(x, "crop", keys=torch.arange(2000), seed=0)
    # The black border that came in from above or below: at most 4 rows, and as many as that.
    black = (out[:, 0].amax(2) == 0).sum(1)
    assert black.max() == 4
    assert black.min() == 0


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@given(batch=st.integers(1, 5), height=st.integers(4, 20), width=st.integers(4, 20))
@settings(max_examples=10, deadline=None)
def test_shape_and_dtype_are_kept_and_nothing_is_changed_in_place(
    kind: str, dtype: torch.dtype, batch: int, height: int, width: int
) -> None:
    x = images(batch, 1 + 2 * (width % 2), height, width).to(dtype)
    kept = x.clone()
    out = augment(x, kind, keys=torch.arange(batch), seed=0)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.equal(x, kept)
    if kind == "none":
        assert torch.equal(out, x)


@given(st.integers(1, 19), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_draws_belong_to_the_image_not_to_the_batch(split: int, seed: int) -> None:
    x, keys = images(20), torch.arange(20) * 17 - 5
    whole = augment(x, "crop-flip", keys=keys, seed=seed)
    parts = [
        augment(x[rows], "crop-flip", keys=keys[rows], seed=seed)
        for rows in (slice(None, split), slice(split, None))
    ]
    assert torch.equal(whole, torch.cat(parts))
    back = augment(x.flip(0), "crop-flip", keys=keys.flip(0), seed=seed)
    assert torch.equal(whole, back.flip(0))


def test_another_epoch_draws_other_crops() -> None:
    first, second = (found_places("crop-flip", 300, seed) for seed in (0, 1))
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert same < 30  # of 50 places, 2% by chance


def test_crops_are_not_the_draws_of_the_attack() -> None:
    """In training both have the same seed and keys; a random start begins at stream 0."""
    keys = torch.arange(1000) * 31
    rows = torch.tensor([row for row, _, _ in found_places("crop", 1000)])
    start = keyed_uniform(keys, (1,), seed=0)[:, 0]
    correlation = torch.corrcoef(torch.stack([rows.float(), start]))[0, 1]
    assert abs(correlation) < 5 / 1000**0.5


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match="none, crop, crop-flip; got 'mixup'"):
        augment(images(1), "mixup", keys=torch.zeros(1, dtype=torch.int64), seed=0)


def test_defaults_are_known_kinds_and_mirror_no_digits() -> None:
    assert {default_augmentation(name) for name in KNOWN} <= set(AUGMENTATIONS)
    assert default_augmentation("digits") == "none"
    for name in ("mnist", "svhn", "digits"):
        assert "flip" not in default_augmentation(name)
    assert default_augmentation("cifar10") == "crop-flip"
