"""Draws keyed by (seed, id, stream): right distributions, and the same in any batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import repsim.keyed
from repsim.keyed import keyed_bits, keyed_normal, keyed_sign, keyed_uniform, mix_seed

INT64 = st.integers(-(2**63), 2**63 - 1)
DRAWS = [keyed_uniform, keyed_sign, keyed_normal]
IDS = torch.arange(200)  # neighbouring keys are the hardest: a weak mix leaves them alike


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator, in plain integers."""
    numbers, mask = [], (1 << 64) - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(z ^ (z >> 31))
    return numbers


def test_each_image_runs_its_own_splitmix64() -> None:
    bits = keyed_bits(torch.tensor([5, -7]), 4, seed=3, stream=2)
    assert bits.shape == (2, 4)
    mask = (1 << 64) - 1
    for key, row in zip([5, -7], bits.tolist(), strict=True):
        base = splitmix64((key + mix_seed(3, 2) - 0x9E3779B97F4A7C15) & mask, 1)[0]
        assert [number & mask for number in row] == splitmix64(base, 4)


def test_mix_seed_is_splitmix64_over_its_parts() -> None:
    assert mix_seed(0) == splitmix64(0, 1)[0] & ((1 << 63) - 1)
    seeds = {mix_seed(*parts) for parts in [(1, 2), (2, 1), (1,), (2,), (1, 2, 0), (0, 0), (0,)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(st.lists(INT64, min_size=1, max_size=6), INT64, st.integers(0, 2**34))
@settings(max_examples=40, deadline=None)
def test_draws_belong_to_the_image_not_to_the_batch(ids: list[int], seed: int, stream: int) -> None:
    keys = torch.tensor(ids)
    for draw in DRAWS:
        whole = draw(keys, (2, 3), seed=seed, stream=stream)
        assert whole.shape == (len(ids), 2, 3)
        assert whole.dtype == torch.float32
        alone = torch.cat([draw(key[None], (2, 3), seed=seed, stream=stream) for key in keys])
        assert torch.equal(whole, alone)
        assert torch.equal(whole.flip(0), draw(keys.flip(0), (2, 3), seed=seed, stream=stream))


@pytest.mark.parametrize("draw", DRAWS)
def test_other_seeds_streams_and_ids_draw_other_numbers(draw: Callable[..., Tensor]) -> None:
    first = draw(IDS, (50,), seed=0).flatten()
    others = [
        draw(IDS, (50,), seed=1),
        draw(IDS, (50,), seed=0, stream=1),
        draw(IDS + 1000, (50,), seed=0),
    ]
    for other in others:
        correlation = np.corrcoef(first.numpy(), other.flatten().numpy())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(len(first))


def test_uniform_numbers_are_uniform_within_and_across_images() -> None:
    draws = keyed_uniform(IDS, (100,), seed=0)
    assert draws.min() >= 0
    assert draws.max() < 1
    # All together; one position across images; one image across positions.
    for numbers in (draws.flatten(), draws[:, 0], draws[0]):
        assert stats.kstest(numbers.numpy(), "uniform").pvalue > 0.01
    # Pairs of neighbours, in either direction, fill the square evenly.
    for a, b in ((draws[:, :-1], draws[:, 1:]), (draws[:-1], draws[1:])):
        cells = (a * 8).long() * 8 + (b * 8).long()
        counts = torch.bincount(cells.flatten(), minlength=64)
        assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_every_bit_is_fair_and_independent_of_the_next() -> None:
    words = keyed_bits(IDS, 50, seed=0).flatten()
    bits = torch.stack([(words >> i) & 1 for i in range(64)]).double()
    bound = 5 * 0.5 / math.sqrt(len(words))
    assert (bits.mean(1) - 0.5).abs().max() < bound
    correlations = torch.corrcoef(bits) - torch.eye(64)
    assert correlations.abs().max() < 5 / math.sqrt(len(words))


def test_signs_are_fair() -> None:
    signs = keyed_sign(IDS, (100,), seed=0)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 0.01


def test_normal_numbers_are_normal() -> None:
    draws = keyed_normal(IDS, (200,), seed=0).flatten().double()
    n = len(draws)
    assert torch.isfinite(draws).all()
    assert stats.kstest(draws.numpy(), "norm").pvalue > 0.01
    # The moments of a standard normal, within five standard errors.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(draws.pow(power).mean() - moment) < 5 * math.sqrt(variance / n)


def test_normal_numbers_are_finite_at_the_rarest_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([[0, -1]])  # all bits 0, all bits 1
    monkeypatch.setattr(repsim.keyed, "keyed_bits", lambda *args, **keys: words)
    low, high = keyed_normal(IDS[:1], (2,), seed=0)[0].tolist()
    assert low == pytest.approx(math.sqrt(48 * math.log(2)))
    assert high == pytest.approx(0, abs=1e-3)
