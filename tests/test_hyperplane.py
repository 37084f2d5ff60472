"""The projection onto a hyperplane inside the box: optimality, other implementations, corners."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack import fab_projections
from scipy.optimize import linprog
from torch import Tensor

from repsim.attacks.hyperplane import project_onto_hyperplane, shift_onto_hyperplane
from repsim.errors import UserError

NORMS = ("linf", "l2", "l1")


def size(delta: Tensor, norm: str) -> Tensor:
    delta = delta.double()
    if norm == "linf":
        return delta.abs().amax(1)
    return delta.norm(dim=1) if norm == "l2" else delta.abs().sum(1)


def by_bisection(points: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The same in float64 from the definition: the multiplier by bisection, row by row."""
    out = []
    for x, w, need in zip(points.double(), normal.double(), gap.double(), strict=True):
        w = w if need >= 0 else -w
        need = need.abs()
        room = torch.where(w > 0, 1 - x, torch.where(w < 0, x, 0.0))
        if norm == "l1":  # greedily
            left, move = need.clone(), torch.zeros_like(x)
            for i in w.abs().argsort(descending=True):
                if w[i] == 0 or left <= 0:
                    break
                move[i] = torch.minimum(left / w[i].abs(), room[i])
                left = left - move[i] * w[i].abs()
            out.append(move * w.sign())
            continue
        speed = torch.ones_like(w) if norm == "linf" else w.abs()
        used = (w != 0) & (room > 0)
        high = float((room[used] / speed[used]).max()) if used.any() else 0.0
        low = 0.0
        for _ in range(200):
            middle = (low + high) / 2
            reached = w.abs() @ torch.minimum(middle * speed, room)
            low, high = (middle, high) if reached < need else (low, middle)
        out.append(torch.minimum(high * speed, room) * w.sign())
    return torch.stack(out)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Points at and inside the bounds, normals with zeros and outliers, near and far planes."""
    rows, width = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 7, 65, 300]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    x = (torch.rand(rows, width, generator=g) * draw(st.sampled_from([1.0, 1.6])) - 0.3).clamp(0, 1)
    w = torch.randn(rows, width, generator=g) ** draw(st.sampled_from([1, 3]))
    w[torch.rand(rows, width, generator=g) < draw(st.sampled_from([0.0, 0.3, 0.9]))] = 0
    if draw(st.booleans()):
        w = w.round(decimals=1)  # many of equal size
    w = w * draw(st.sampled_from([1.0, 1e-6, 1e4]))
    reach = w.abs().sum(1)  # beyond what the box allows
    far = draw(st.sampled_from([0.0, 1e-3, 0.05, 0.3, 1.0]))
    return x, w, (w * x).sum(1) + far * reach * (torch.rand(rows, generator=g) * 2 - 1)


@pytest.mark.parametrize("norm", NORMS)
@given(problem=problems())
@settings(max_examples=40, deadline=None)
def test_it_is_the_float64_solution(norm: str, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, b = problem
    found = project_onto_hyperplane(x, w, b, norm)
    gap = b.double() - (w.double() * x.double()).sum(1)
    wanted = by_bisection(x, w, gap, norm)
    assert found.dtype == torch.float32
    # A gap rounded in float32 shifts the plane by this much of the perturbation.
    rounding = 2e-6 * (w.abs().double() * (1 + x.abs())).sum(1)
    reached = (w.double() * found.double()).sum(1)
    best = (w.double() * wanted).sum(1)
    assert ((reached - best).abs() <= rounding + 1e-5 * gap.abs()).all()
    moved = x.double() + found.double()
    assert (moved >= -1e-7).all()
    assert (moved <= 1 + 1e-7).all()
    assert (found[w == 0] == 0).all()

    exact = project_onto_hyperplane(x.double(), w.double(), b.double(), norm)
    torch.testing.assert_close(size(exact, norm), size(wanted, norm), atol=1e-11, rtol=1e-9)
    reached = (w.double() * exact).sum(1)
    scale = w.abs().sum(1).clamp_min(1e-30).double()
    torch.testing.assert_close(reached / scale, best / scale, atol=1e-12, rtol=1e-9)
    if norm != "l1":  # unique, where a coordinate matters
        torch.testing.assert_close(exact, wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
@given(problem=problems())
@settings(max_examples=40, deadline=None)
def test_it_is_the_published_projection(norm: str, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, b = problem
    scale = w.abs().amax(1).clamp_min(1e-30)  # its thresholds are absolute
    w, b = w / scale[:, None], b / scale
    # In l2 it divides by entries that this one takes as they are.
    w[w.abs() < 1e-4] = 0
    wanted = getattr(fab_projections, f"projection_{norm}")(x.double(), w.double(), b.double())
    found = project_onto_hyperplane(x.double(), w.double(), b.double(), norm)
    torch.testing.assert_close(size(found, norm), size(wanted, norm), atol=1e-6, rtol=1e-6)
    if norm != "l1":
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    single = project_onto_hyperplane(x, w, b, norm)
    gap = (b - (w * x).sum(1)).abs()
    sure = gap > 1e-3 * w.abs().sum(1)  # elsewhere the gap itself is float32 rounding
    torch.testing.assert_close(
        size(single, norm)[sure], size(wanted, norm)[sure], atol=1e-4, rtol=2e-3
    )


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_it_is_the_optimum_of_a_linear_program(norm: str) -> None:
    torch.manual_seed(0)
    rows, n = 20, 15
    x = (torch.rand(rows, n, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    w = torch.randn(rows, n, dtype=torch.float64)
    w[:, ::4] = 0
    room = torch.where(w > 0, 1 - x, x)
    share = torch.rand(rows, dtype=torch.float64)
    b = (w * x).sum(1) + share * (w.abs() * room).sum(1)  # within reach
    found = project_onto_hyperplane(x, w, b, norm)
    torch.testing.assert_close((w * (x + found)).sum(1), b)
    for row in range(rows):
        # Unknowns: the perturbation, then its sizes (l1: one a coordinate; linf: one).
        sizes = n if norm == "l1" else 1
        spread = np.eye(n) if norm == "l1" else np.ones((n, 1))
        answer = linprog(
            np.r_[np.zeros(n), np.ones(sizes)],
            A_ub=np.block([[np.eye(n), -spread], [-np.eye(n), -spread]]), b_ub=np.zeros(2 * n),
            A_eq=np.r_[w[row].numpy(), np.zeros(sizes)][None],
            b_eq=[float(b[row] - w[row] @ x[row])],
            bounds=[(-float(v), 1 - float(v)) for v in x[row]] + [(0, None)] * sizes,
        )  # fmt: skip
        assert answer.status == 0
        assert float(size(found[row : row + 1], norm)) == pytest.approx(answer.fun, abs=1e-9)


def test_without_the_box_it_is_the_distance_over_the_dual_norm() -> None:
    torch.manual_seed(1)
    x = torch.full((6, 40), 0.5, dtype=torch.float64)
    w = torch.randn(6, 40, dtype=torch.float64)
    gap = torch.tensor([0.3, -0.3, 1e-6, -1e-12, 0.0, 0.1], dtype=torch.float64)
    for norm, dual in (("linf", w.abs().sum(1)), ("l2", w.norm(dim=1)), ("l1", w.abs().amax(1))):
        found = shift_onto_hyperplane(x, w, gap, norm)
        torch.testing.assert_close(size(found, norm), gap.abs() / dual, atol=0, rtol=1e-12)
        torch.testing.assert_close((w * found).sum(1), gap, atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_every_useful_coordinate_is_at_its_bound(norm: str) -> None:
    x = torch.tensor([[0.0, 0.2, 0.5, 1.0, 0.7]])
    w = torch.tensor([[-1.0, 2.0, 0.0, 1.0, -1e-3]])
    for gap, wanted in ((9.0, [0.0, 0.8, 0.0, 0.0, -0.7]), (-9.0, [1.0, -0.2, 0.0, -1.0, 0.3])):
        found = shift_onto_hyperplane(x, w, torch.tensor([gap]), norm)
        torch.testing.assert_close(found, torch.tensor([wanted]))
    # A normal of zeros: nothing is of use.
    assert (shift_onto_hyperplane(x, 0 * w, torch.tensor([1.0]), norm) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_any_scale_of_the_normal(norm: str) -> None:
    torch.manual_seed(2)
    x, w = torch.rand(4, 50), torch.randn(4, 50)
    gap = torch.tensor([1.0, -1.0, 0.1, -5.0])
    wanted = shift_onto_hyperplane(x, w, gap, norm)
    for scale in (1e-30, 1e-20, 1e20, 1e30):
        found = shift_onto_hyperplane(x, w * scale, gap * scale, norm)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_breakpoints_that_lie_geometrically(norm: str) -> None:
    """Newton's worst case: every pass meets but one more bound."""
    n = 60
    x = (1 - 2.0 ** -torch.arange(1, n + 1).double()).expand(n, n).clone()
    w = (1.7 ** torch.arange(n).double()).expand(n, n).clone()
    reach = (w * (1 - x)).sum(1)
    gap = reach * (torch.arange(n) + 0.5) / n
    found = shift_onto_hyperplane(x, w, gap, norm)
    torch.testing.assert_close((w * found).sum(1), gap, atol=0, rtol=1e-12)
    wanted = by_bisection(x, w, gap, norm)
    torch.testing.assert_close(size(found, norm), size(wanted, norm), atol=1e-9, rtol=1e-6)


def test_l1_looks_further_where_the_first_look_is_short() -> None:
    torch.manual_seed(3)
    x = torch.rand(8, 3000, dtype=torch.float64)
    w = 1 + 0.1 * torch.rand(8, 3000, dtype=torch.float64)
    reach = (w * (1 - x)).sum(1)
    gap = reach * torch.tensor([0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999, 1.5])
    found = shift_onto_hyperplane(x, w, gap, "l1")
    wanted = by_bisection(x, w, gap, "l1")
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_see_each_other(norm: str) -> None:
    torch.manual_seed(4)
    x, w = torch.rand(9, 200), torch.randn(9, 200)
    gap = torch.tensor([0.01, 90.0, -2.0, 1.0, 0.0, 30.0, -30.0, 5.0, 1e-5])
    together = shift_onto_hyperplane(x, w, gap, norm)
    for row in range(9):
        alone = shift_onto_hyperplane(*(v[row : row + 1] for v in (x, w, gap)), norm)
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_broken_numbers_stay_visible_and_in_their_row(norm: str) -> None:
    x, w, gap = torch.rand(3, 20), torch.randn(3, 20), torch.ones(3)
    w[1, 3] = torch.nan
    found = shift_onto_hyperplane(x, w, gap, norm)
    assert found[1].isnan().any()
    assert found[[0, 2]].isfinite().all()
    w[1, 3] = 0.0
    gap[1] = torch.nan
    assert shift_onto_hyperplane(x, w, gap, norm)[1].isnan().any()


def test_arguments_are_left_alone_and_nothing_comes_of_nothing() -> None:
    x, w, b = torch.rand(3, 20), torch.randn(3, 20), torch.randn(3)
    before = [v.clone() for v in (x, w, b)]
    for norm in NORMS:
        project_onto_hyperplane(x, w, b, norm)
        assert all(torch.equal(a, c) for a, c in zip((x, w, b), before, strict=True))
        assert project_onto_hyperplane(x[:0], w[:0], b[:0], norm).shape == (0, 20)
    with pytest.raises(UserError, match="linf, l2, l1; got 'l3'"):
        project_onto_hyperplane(x, w, b, "l3")
