"""The l1 ball in the box: nearest points, sparse steps, uniform starts."""

from __future__ import annotations

import math

import eagerpy
import pytest
import torch
from foolbox.attacks import SparseL1DescentAttack
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import L1_projection
from scipy.optimize import minimize
from torch import Tensor

from repsim.attacks.ball import project, random_start, steepest
from repsim.attacks.l1 import largest_signs, project_l1

CASES = ["normal", "wide", "heavy", "equal", "sparse", "outward"]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clean_and_away(
    case: str, batch: int = 5, shape: tuple[int, ...] = (3, 7, 6), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images with many pixels at the bounds of the box, and points to be projected."""
    clean = (rand(batch, *shape, seed=seed) * 1.6 - 0.3).clamp(0, 1)
    away = randn(batch, *shape, seed=seed + 1)
    if case == "wide":
        away = away * 100
    elif case == "heavy":
        away = away / randn(batch, *shape, seed=seed + 2)
    elif case == "equal":
        away = away.sign() * 0.25
    elif case == "sparse":
        away = away * (rand(batch, *shape, seed=seed + 2) < 0.1)
    elif case == "outward":  # the box lets nothing out
        clean = clean.round()
        away = (2 * clean - 1) * away.abs()
    return clean, clean + away


def by_bisection(inputs: Tensor, clean: Tensor, eps: float) -> Tensor:
    """The projection once more: λ by halving an interval, in float64."""
    center, delta = clean.double().flatten(1), (inputs.double() - clean.double()).flatten(1)
    room = torch.where(delta > 0, 1 - center, center)
    low, high = torch.zeros(len(delta), 1).double(), delta.abs().amax(1, keepdim=True)

    def cut(threshold: Tensor) -> Tensor:
        return torch.minimum((delta.abs() - threshold).clamp(min=0), room)

    low = torch.where(cut(low).sum(1, keepdim=True) <= eps, high, low)  # inside
    high = torch.where(cut(torch.zeros_like(high)).sum(1, keepdim=True) <= eps, 0, high)
    low = torch.minimum(low, high)
    for _ in range(200):
        middle = (low + high) / 2
        above = cut(middle).sum(1, keepdim=True) > eps
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (center + delta.sign() * cut(high)).view_as(clean)


def size(found: Tensor, clean: Tensor) -> Tensor:
    return (found.double() - clean.double()).abs().flatten(1).sum(1)


@given(
    st.sampled_from(CASES),
    st.integers(0, 99),
    st.floats(0, 60) | st.sampled_from([0.0, 1e-8, 1e-4, 12.0]),
    st.sampled_from([(1, 1, 1), (1, 2, 2), (3, 7, 6), (3, 16, 16)]),
)
@settings(max_examples=80, deadline=None)
def test_projection_is_that_of_bisection(
    case: str, seed: int, eps: float, shape: tuple[int, ...]
) -> None:
    clean, away = clean_and_away(case, shape=shape, seed=seed)
    found = project(away, clean, eps, "l1")
    wanted = by_bisection(away, clean, eps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1.3e-7, rtol=0)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (size(found, clean) <= eps * (1 + 2.0**-23)).all()
    # What is inside, the bound included, stays to the bit.
    assert torch.equal(project(found, clean, eps, "l1"), found)
    assert torch.equal(project(clean, clean, eps, "l1"), clean)
    if eps == 0:
        assert torch.equal(found, clean)


@pytest.mark.parametrize("case", CASES)
def test_no_point_of_the_set_is_nearer(case: str) -> None:
    """⟨point - projection, z - projection⟩ <= 0 for all z of the convex set says just that."""
    clean, away = clean_and_away(case)
    eps = 4.0
    found = project(away, clean, eps, "l1").double()
    for s in range(300):  # random points, pulled to the clean image until they are in the ball
        z = rand(*clean.shape, seed=s)
        z = [z, z.round(), (found.float() + 0.1 * randn(*clean.shape, seed=s)).clamp(0, 1)][s % 3]
        share = (eps / size(z, clean)).clamp_max(1).view(-1, 1, 1, 1)
        z = clean + share * (z - clean.double())
        product = ((away.double() - found) * (z - found)).flatten(1).sum(1)
        assert (product <= 1e-5 * away.abs().max()).all()


def test_projection_is_the_quadratic_programs() -> None:
    clean, away = clean_and_away("normal", batch=4, shape=(1, 2, 3))
    found = project(away, clean, 0.7, "l1")
    for i in range(4):
        c, p = clean[i].double().flatten().numpy(), away[i].double().flatten().numpy()
        # z = c + up - down, up and down in [0, 1]: smooth, and its constraints are linear.
        answer = minimize(
            lambda v, c=c, p=p: ((c + v[:6] - v[6:] - p) ** 2).sum() + 1e-9 * v.sum(),
            [0.01] * 12,
            bounds=[(0, 1 - a) for a in c] + [(0, a) for a in c],
            constraints={"type": "ineq", "fun": lambda v: 0.7 - v.sum()},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        z = torch.tensor(c + answer.x[:6] - answer.x[6:])
        torch.testing.assert_close(found[i].double().flatten(), z, atol=2e-5, rtol=0)


def test_projection_is_not_ball_then_clip() -> None:
    """A pixel at the bound spends nothing of eps: the others have all of it."""
    clean = torch.tensor([1.0, 0.5, 0.5]).view(1, 1, 1, 3)
    found = project(clean + torch.tensor([3.0, 0.4, 0.2]), clean, 0.3, "l1")
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 0.75, 0.55]))


@pytest.mark.parametrize("case", ["normal", "equal", "sparse"])
def test_projection_is_autoattacks(case: str) -> None:
    clean, away = clean_and_away(case, batch=20)
    wanted = away + L1_projection(clean, away - clean, 5.0)
    torch.testing.assert_close(project(away, clean, 5.0, "l1"), wanted, atol=5e-6, rtol=0)


def test_projection_is_more_exact_than_autoattacks() -> None:
    """Its running sum in float32 goes wrong by hundredths of a pixel where points are far."""
    clean, away = clean_and_away("wide", batch=20, shape=(3, 32, 32))
    truth = by_bisection(away, clean, 12.0)
    theirs = (away + L1_projection(clean, away - clean, 12.0) - truth).abs().max()
    ours = (project(away, clean, 12.0, "l1") - truth).abs().max()
    assert ours < 1.3e-7
    assert theirs > 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6, 1e20, 1e30])
def test_any_scale_of_points(scale: float) -> None:
    clean = rand(4, 3, 8, 8) * 0.5 + 0.25
    away = clean + scale * randn(4, 3, 8, 8)
    found = project(away, clean, 3.0, "l1")
    assert found.isfinite().all()
    assert (size(found, clean) <= 3.0 * (1 + 2.0**-23)).all()
    if scale == 1e6:  # above, float64 cannot tell all that is left to the others
        torch.testing.assert_close(size(found, clean), torch.full((4,), 3.0).double(), atol=1e-5,
                                   rtol=0)  # fmt: skip


def test_broken_pixels_stay_broken() -> None:
    clean, away = clean_and_away("normal")
    whole = project(away, clean, 2.0, "l1")
    for broken in (torch.nan, torch.inf):
        away[1, 0, 0, 0] = broken
        found = project(away, clean, 2.0, "l1")
        assert torch.equal(found[[0, 2, 3, 4]], whole[[0, 2, 3, 4]])
        assert broken == torch.inf or found[1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_projection_in_any_dtype_and_layout(dtype: torch.dtype) -> None:
    clean, away = (t.to(dtype) for t in clean_and_away("normal", batch=50))
    clean, away = (t.contiguous(memory_format=torch.channels_last) for t in (clean, away))
    found = project(away, clean, 2.0, "l1")
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (size(found, clean) <= 2.0 * (1 + 2.0**-23)).all()
    ulp = 2 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-8
    torch.testing.assert_close(found.double(), by_bisection(away, clean, 2.0), atol=ulp, rtol=0)
    kept = away.clone()
    project(away, clean, 2.0, "l1")
    assert torch.equal(away, kept)  # the argument is left alone


@given(st.integers(40, 299), st.sampled_from(CASES))
@settings(max_examples=12, deadline=None)
def test_projection_does_not_depend_on_the_batch(split: int, case: str) -> None:
    clean, away = clean_and_away(case, batch=300, shape=(3, 20, 20))  # more than one piece
    whole = project(away, clean, 6.0, "l1")
    parts = [project(a, c, 6.0, "l1") for a, c in zip(away.split(split), clean.split(split),
                                                      strict=True)]  # fmt: skip
    assert torch.equal(whole, torch.cat(parts))
    assert project(away[:0], clean[:0], 6.0, "l1").shape == away[:0].shape


# --- steps -----------------------------------------------------------------------------------


def test_steepest_is_slides_of_foolbox() -> None:
    for side in (4, 8, 10, 32):
        at = (rand(6, 3, side, side) * 1.6 - 0.3).clamp(0, 1)
        gradient = randn(6, 3, side, side)
        found = steepest(gradient, "l1", at)
        wanted = SparseL1DescentAttack().normalize(
            eagerpy.astensor(gradient), x=eagerpy.astensor(at), bounds=_Bounds()
        )
        torch.testing.assert_close(found, wanted.raw)
        number = (found != 0).flatten(1).sum(1)
        assert (number == max(1, math.ceil(0.01 * 3 * side * side))).all()
        torch.testing.assert_close(found.abs().flatten(1).sum(1), torch.ones(6))


class _Bounds:
    lower, upper = 0, 1


def test_steepest_takes_pixels_that_can_move() -> None:
    gradient = torch.tensor([9.0, -8.0, 7.0, -6.0, 5.0, -4.0]).view(1, 1, 2, 3)
    at = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5]).view(1, 1, 2, 3)
    assert steepest(gradient, "l1", at).flatten().tolist() == [0, 0, 1, 0, 0, 0]
    assert steepest(gradient, "l1", 1 - at).flatten().tolist() == [1, 0, 0, 0, 0, 0]


def test_steepest_of_no_gradient_and_of_a_broken_one() -> None:
    zero, at = torch.zeros(2, 3, 20, 20), torch.full((2, 3, 20, 20), 0.5)
    assert torch.equal(steepest(zero, "l1", at), zero)
    few = zero.clone()
    few[0, 0, 0, :2] = torch.tensor([1e-30, -1e30])
    found = steepest(few, "l1", at)  # fewer than 1% have a gradient
    assert found[0, 0, 0, :3].tolist() == [0.5, -0.5, 0]
    assert found.abs().sum() == 1
    few[1, 2, 3, 4] = torch.nan
    assert steepest(few, "l1", at)[1].isnan().any()
    assert not steepest(few, "l1", at)[0].isnan().any()


@given(st.integers(1, 60), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_largest_signs(most: int, seed: int) -> None:
    gradient = randn(7, 3, 4, 5, seed=seed)
    counts = torch.randint(1, most + 1, (7,), generator=torch.Generator().manual_seed(seed))
    found = largest_signs(gradient, counts, most).flatten(1)
    order = gradient.flatten(1).abs().argsort(1, descending=True)
    for i, count in enumerate(counts.tolist()):
        chosen = order[i, :count]
        wanted = torch.zeros(60)
        wanted[chosen] = gradient.flatten(1)[i, chosen].sign() / count
        torch.testing.assert_close(found[i], wanted)


# --- the random start ------------------------------------------------------------------------


def test_random_start_is_uniform_in_the_ball() -> None:
    number, d = 6000, 6
    clean, ids = torch.full((number, 1, 2, 3), 0.5), torch.arange(number)
    delta = (random_start(clean, 0.3, "l1", ids=ids, seed=0) - clean).flatten(1) / 0.3
    expected = (torch.arange(number) + 0.5) / number
    bound = 1.63 / math.sqrt(number)  # Kolmogorov, 1%
    radius = delta.abs().sum(1).pow(d).sort().values
    assert (radius - expected).abs().max() < bound
    for i in range(d):  # a coordinate's |δ| is above t with probability (1 - t)^d
        marginal = (1 - (1 - delta[:, i].abs()).pow(d)).sort().values
        assert (marginal - expected).abs().max() < bound
        assert abs((delta[:, i] > 0).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(number)
    signs = delta.sign()
    assert (signs.T @ signs / number - torch.eye(d)).abs().max() < 5 / math.sqrt(number)


def test_random_start_is_clipped_and_belongs_to_its_image() -> None:
    clean, ids = (rand(20, 3, 8, 8) * 1.6 - 0.3).clamp(0, 1), torch.arange(20) * 7 - 3
    free = random_start(torch.full_like(clean, 0.5), 12.0, "l1", ids=ids, seed=2) - 0.5
    found = random_start(clean, 12.0, "l1", ids=ids, seed=2)
    torch.testing.assert_close(found, (clean + free).clamp(0, 1), atol=1e-6, rtol=0)
    assert (size(found, clean) <= 12 * (1 + 2.0**-23)).all()
    alone = [random_start(clean[i : i + 1], 12.0, "l1", ids=ids[i : i + 1], seed=2)
             for i in range(20)]  # fmt: skip
    assert torch.equal(torch.cat(alone), found)
    for other in ({"seed": 3}, {"seed": 2, "restart": 1}):
        assert not torch.equal(random_start(clean, 12.0, "l1", ids=ids, **other), found)


def test_cached_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, away = clean_and_away("normal", batch=9)
    whole = project_l1(away, clean, 3.0)
    monkeypatch.setattr("repsim.attacks.l1._CACHED", 1)
    assert torch.equal(project_l1(away, clean, 3.0), whole)
