"""What all minimum-norm attacks promise, and DeepFool and C&W against another implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_attacks import (
    CLASSES,
    ConvNet,
    Counter,
    Root,
    assert_same,
    batch_norm_net,
    images,
    labels,
    state,
)
from test_fab import Backwards
from torch import Tensor, nn

from repsim.attacks.ball import perturbation_norm
from repsim.attacks.cw import cw
from repsim.attacks.deepfool import deepfool
from repsim.attacks.fab import fab
from repsim.attacks.minimum import Search, dual_norm, nearest_boundary
from repsim.errors import UserError
from repsim.losses import margin

Attack = Callable[..., Tensor]
SHORT_CW = partial(cw, steps=20, binary_search=3, initial_const=0.1, step_size=0.05)
ALL = {
    "fab": partial(fab, steps=6), "fab-l2": partial(fab, steps=6, norm="l2"),
    "fab-l1": partial(fab, steps=6, norm="l1"), "fab-t": partial(fab, steps=4, targets=2),
    "fab-r": partial(fab, steps=3, restarts=2), "deepfool": deepfool,
    "deepfool-linf": partial(deepfool, norm="linf"), "cw": SHORT_CW,
}  # fmt: skip
NORM = {"fab": "linf", "fab-l2": "l2", "fab-l1": "l1", "fab-t": "linf", "fab-r": "linf",
        "deepfool": "l2", "deepfool-linf": "linf", "cw": "l2"}  # fmt: skip
EPS = {"linf": 0.02, "l2": 0.2, "l1": 1.2}
everywhere = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return ConvNet().eval()


class Linear(nn.Module):
    """logits = W x + b on flat pixels."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T.to(x.dtype) + self.bias.to(x.dtype)


def linear(classes: int, pixels: int) -> Linear:
    """A network whose boundaries go close by the image of 0.5."""
    torch.manual_seed(5)
    weight = torch.randn(classes, pixels, dtype=torch.float64)
    return Linear(weight, -weight.sum(1) / 2)


# --- the optimum on a linear model -----------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "norm", "above", "least"),
    [
        (partial(fab, steps=20), "linf", 0.01, 0), (partial(fab, steps=20), "l2", 0.01, 0),
        (partial(fab, steps=20), "l1", 0.01, 0),
        (partial(fab, steps=20, targets=2), "linf", 0.01, 0),
        # Its steps are 1e-4 longer than the linear problem asks for.
        (partial(deepfool, overshoot=0.0), "l2", 1e-6, 1.01e-4),
        (partial(deepfool, overshoot=0.0), "linf", 1e-6, 1.01e-4),
        (partial(cw, steps=400, binary_search=10, step_size=0.002), "l2", 0.01, 0),
    ],
)  # fmt: skip
def test_closed_form_where_the_box_does_not_bind(
    attack: Attack, norm: str, above: float, least: float
) -> None:
    """min_k |f_k| / ‖w_k - w_y‖*: never less, and little more."""
    model = linear(3, 48)
    x = images(10, size=4, low=0.4, high=0.6).double()
    y = labels(model, x)
    logits = model(x)
    distance = torch.full((10, 3), torch.inf, dtype=torch.float64)
    for k in range(3):
        gap = (logits[:, k] - logits.gather(1, y[:, None])[:, 0]).abs()
        size = dual_norm(model.weight[k] - model.weight[y], norm)
        distance[:, k] = torch.where(y == k, torch.inf, gap / size)
    found = attack(model, x, y, eps=None, norm=norm)
    assert found.dtype == torch.float64
    assert (labels(model, found) != y).all()
    size, wanted = perturbation_norm(found - x, norm), distance.amin(1)
    assert (size >= wanted * (1 - 1e-6)).all()
    assert (size <= wanted * (1 + above) + least).all()


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("targets", [0, 2])
def test_fab_finds_the_linear_programs_optimum_where_the_box_binds(norm: str, targets: int) -> None:
    model, n = linear(3, 12), 12
    x = (images(16, size=2).double() * 1.8 - 0.4).clamp(0, 1)
    y = labels(model, x)
    found = fab(model, x, y, eps=None, norm=norm, steps=40, targets=targets)
    sizes = n if norm == "l1" else 1
    spread = np.eye(n) if norm == "l1" else np.ones((n, 1))
    bound = 0
    for row, (image, label) in enumerate(zip(x.flatten(1), y, strict=True)):
        optima = []
        for k in set(range(3)) - {int(label)}:
            w = model.weight[k] - model.weight[label]
            gap = float(w @ image + model.bias[k] - model.bias[label])
            answer = linprog(
                np.r_[np.zeros(n), np.ones(sizes)],
                A_ub=np.block(
                    [[np.eye(n), -spread], [-np.eye(n), -spread],
                     [-w.numpy()[None], np.zeros((1, sizes))]]
                ),
                b_ub=np.r_[np.zeros(2 * n), gap],
                bounds=[(-float(v), 1 - float(v)) for v in image] + [(0, None)] * sizes,
            )  # fmt: skip
            optima.append(answer.fun if answer.status == 0 else math.inf)
            bound += optima[-1] > abs(gap) / float(dual_norm(w[None], norm)) * 1.01
        size = float(perturbation_norm(found[row : row + 1] - x[row : row + 1], norm))
        if min(optima) == math.inf:
            assert size == 0
        else:
            assert min(optima) * (1 - 1e-6) <= size <= min(optima) * 1.03
    assert bound > 8  # the box matters


# --- another implementation ------------------------------------------------------------------


def foolbox_of(net: nn.Module) -> Any:
    return foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_deepfool_is_foolbox(net: nn.Module, norm: str, classes: int) -> None:
    model = foolbox_of(net)
    import foolbox.attacks as reference

    x = images(24)
    y = labels(net, x)
    kind = {"l2": reference.L2DeepFoolAttack, "linf": reference.LinfDeepFoolAttack}[norm]
    attack = kind(steps=50, candidates=min(classes, CLASSES), loss="logits")
    wanted, _, fooled = attack(model, x, y, epsilons=None)
    assert fooled.all()
    record: dict[str, Tensor] = {}
    found = deepfool(net, x, y, norm=norm, classes=classes, record=record)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert record["first_success"].max() > 2


@pytest.mark.parametrize("confidence", [0.0, 0.5])
@pytest.mark.parametrize("abort_early", [False, True])
def test_cw_is_foolbox(net: nn.Module, confidence: float, abort_early: bool) -> None:
    """One image at a time: a batch shares the decision to stop there.

    That decision is made there before the iterate is looked at, here after: it may still win.
    """
    model = foolbox_of(net)
    from foolbox.attacks import L2CarliniWagnerAttack

    x = images(5)
    y = labels(net, x)
    how: dict[str, Any] = {
        "steps": 30, "confidence": confidence, "initial_const": 1e-2, "abort_early": abort_early,
    }  # fmt: skip
    attack = L2CarliniWagnerAttack(binary_search_steps=4, stepsize=0.01, **how)
    wanted = torch.cat(
        [attack(model, x[i : i + 1], y[i : i + 1], epsilons=None)[0] for i in range(5)]
    )
    missing = (wanted == 0).flatten(1).all(1)  # theirs is a black image where there is none
    found = cw(net, x, y, binary_search=4, step_size=0.01, **how)
    wanted[missing] = x[missing]
    sizes, others = (perturbation_norm(v - x, "l2") for v in (found, wanted))
    assert (sizes[~missing] <= others[~missing] + 1e-5).all()
    same = (found - wanted).flatten(1).abs().amax(1) < 2e-6
    assert same.sum() >= (4 if abort_early else 5)
    assert not missing.all()
    assert (margin(net(found), y)[~missing] >= confidence - 1e-5).all()


def test_cw_repeats_the_largest_constant_from_ten_trials_on(net: nn.Module) -> None:
    model = foolbox_of(net)
    from foolbox.attacks import L2CarliniWagnerAttack

    x = images(1)
    y = labels(net, x)
    attack = L2CarliniWagnerAttack(binary_search_steps=10, steps=15, stepsize=0.05)
    wanted, _, _ = attack(model, x, y, epsilons=None)
    found = cw(net, x, y, binary_search=10, steps=15, step_size=0.05)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_deepfool_leaves_where_fab_goes_on(net: nn.Module) -> None:
    """And of l2 attacks C&W and FAB are below DeepFool nearly everywhere."""
    x = images(16)
    y = labels(net, x)
    first = perturbation_norm(deepfool(net, x, y) - x, "l2")
    for better in (partial(fab, norm="l2", eps=None, steps=30), cw):
        how = {"steps": 100, "binary_search": 5, "step_size": 0.02} if better is cw else {}
        size = perturbation_norm(better(net, x, y, **how) - x, "l2")
        assert size.median() < first.median()
        # A hundred steps of C&W for each of five c are not yet enough for the nearest.
        assert (size <= first * 1.05).double().mean() > (0.6 if better is cw else 0.99)


# --- what all promise ------------------------------------------------------------------------


@everywhere
def test_results_are_as_recorded(name: str, net: nn.Module) -> None:
    x = images(20)
    y = labels(net, x)
    y[:4] = (y[:4] + 2) % CLASSES
    wrong = torch.arange(20) < 4
    norm = NORM[name]
    kept = {}
    for mode in ("represent", "evaluate", "last"):
        record: dict[str, Tensor] = {}
        found = ALL[name](net, x, y, eps=EPS[norm], mode=mode, record=record)
        kept[mode] = found
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert found.min() >= 0
        assert found.max() <= 1
        assert torch.equal(found[:4], x[:4])
        assert record["loss"].dtype == torch.float32
        with torch.no_grad():
            loss = margin(net(found), y)
        torch.testing.assert_close(record["loss"], loss, atol=1e-4, rtol=1e-4)
        first, size = record["first_success"], perturbation_norm(found - x, norm)
        assert first.dtype == torch.int64
        assert torch.equal(first == 0, wrong)
        fooled = labels(net, found) != y
        assert torch.equal(fooled, wrong | (size > 0))  # adversarial or clean, nothing between
        assert torch.equal(first >= 0, wrong | (fooled & (size <= EPS[norm])))
        if mode != "represent":
            assert size.max() <= EPS[norm]
    assert torch.equal(kept["evaluate"], kept["last"])
    sizes = {m: perturbation_norm(v - x, norm) for m, v in kept.items()}
    assert (sizes["represent"] > EPS[norm]).any()
    assert ((sizes["evaluate"] > 0) & (sizes["evaluate"] <= EPS[norm])).any()
    both = sizes["evaluate"] > 0
    assert (sizes["represent"][both] <= sizes["evaluate"][both]).all()


@everywhere
def test_a_batch_and_its_parts_give_the_same(name: str, net: nn.Module) -> None:
    x = images(10)
    y = labels(net, x)
    y[7] = (y[7] + 1) % CLASSES
    ids = torch.tensor([5, 3, 9, 100, -7, 2**60, 0, 1, 2, 4])
    for mode in ("represent", "evaluate"):
        whole_record: dict[str, Tensor] = {}
        how: dict[str, Any] = {"mode": mode, "eps": EPS[NORM[name]]}
        keyed = name.startswith("fab")
        whole = ALL[name](net, x, y, record=whole_record, **how, **({"ids": ids} if keyed else {}))
        for part in (slice(0, 1), slice(1, 4), slice(4, 10), slice(7, 8)):
            record: dict[str, Tensor] = {}
            some = ALL[name](
                net, x[part], y[part], record=record, **how,
                **({"ids": ids[part]} if keyed else {}),
            )  # fmt: skip
            torch.testing.assert_close(some, whole[part], atol=1e-4, rtol=0)
            assert torch.equal(record["first_success"], whole_record["first_success"][part])
        again = ALL[name](net, x, y, **how, **({"ids": ids} if keyed else {}))
        assert torch.equal(again, whole)


@st.composite
def problems(draw: st.DrawFn) -> tuple[str, Tensor, float | None, str]:
    shape = [draw(st.integers(0, 4)), 3, draw(st.integers(4, 8)), 5]
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    x = (x * draw(st.sampled_from([1.0, 1.5])) - draw(st.sampled_from([0.0, 0.25]))).clamp(0, 1)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.to(draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64])))
    name = draw(st.sampled_from(sorted(ALL)))
    eps = draw(st.sampled_from([None, 0.0, 1e-6, 1e-3, 0.02, 0.3, 1.0]))
    return name, x, eps, draw(st.sampled_from(["represent", "evaluate", "last"]))


@given(problems())
@settings(max_examples=40, deadline=None)
def test_never_outside_the_ball_or_the_box(problem: tuple[str, Tensor, float | None, str]) -> None:
    name, x, eps, mode = problem
    model = ConvNet().to(x.dtype).eval()
    y = torch.arange(len(x)) % CLASSES
    before = x.clone()
    attack = partial(ALL[name], steps=3, **({"binary_search": 2} if name == "cw" else {}))
    found = attack(model, x, y, eps=eps, mode=mode, record={})
    assert torch.equal(x, before)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert found.data_ptr() != x.data_ptr() or len(x) == 0
    if len(x) == 0:
        return
    assert found.min() >= 0
    assert found.max() <= 1
    if eps == 0:
        assert torch.equal(found, x)
    if eps is not None and mode != "represent":
        assert perturbation_norm(found.double() - x.double(), NORM[name]).max() <= eps * (1 + 1e-6)
    if x.is_contiguous(memory_format=torch.channels_last):
        assert found.is_contiguous(memory_format=torch.channels_last)
    wrong = labels(model, x) != y
    assert torch.equal(found[wrong], x[wrong])


@everywhere
def test_the_network_is_left_as_it_was(name: str) -> None:
    model = batch_norm_net()
    x = images(6)
    before = state(model)
    ALL[name](model, x, torch.zeros(6, dtype=torch.int64), eps=0.5, record={})
    assert_same(state(model), before)


@everywhere
@pytest.mark.parametrize("mode", ["represent", "evaluate"])
def test_a_broken_gradient_is_not_robustness(name: str, mode: str) -> None:
    model, x = Root(), images()
    with pytest.raises(UserError, match="finite loss and gradient"):
        ALL[name](model, x, labels(model, x), eps=0.01, mode=mode)


class Undefined(nn.Module):
    """NaN away from the clean image only."""

    def forward(self, x: Tensor) -> Tensor:
        rise = x.flatten(1).sum(1, keepdim=True)
        there = (rise - 96).abs() < 1e-3
        return torch.cat([9 + rise * 0, torch.where(there, rise, torch.nan * rise)], 1)


@everywhere
def test_nor_are_broken_logits(name: str) -> None:
    x, y = torch.full((2, 3, 8, 8), 0.5), torch.ones(2, dtype=torch.int64)
    with pytest.raises(UserError, match="finite loss and gradient"):
        ALL[name](Undefined(), x, y, eps=0.5)
    with pytest.raises(UserError, match="finite loss and gradient"):
        ALL[name](nn.Sequential(nn.Flatten(), NotANumber()), x, y, eps=0.5)


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * torch.nan


@everywhere
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eps": -1.0}, "at least 0"), ({"eps": math.nan}, "at least 0"),
        ({"eps": math.inf}, "at least 0"), ({"norm": "l3"}, "got 'l3'"),
        ({"norm": "linf", "eps": 8.0}, "0-255|expects one of l2"),
        ({"mode": "best"}, "represent, evaluate, last; got 'best'"), ({"steps": 0}, "at least 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(
    name: str, wrong: dict[str, Any], message: str, net: nn.Module
) -> None:
    with pytest.raises(UserError, match=message):
        ALL[name](net, images(), torch.zeros(12, dtype=torch.int64), **wrong)


@everywhere
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (images() * 2 - 1, torch.zeros(12, dtype=torch.int64), "pixels in"),
        (images()[:3], torch.zeros(12, dtype=torch.int64), "one an image"),
        (images(), torch.full((12,), CLASSES), f"0 to {CLASSES - 1}"),
        (images(), torch.zeros(12), "int64"),
    ],
    ids=["normalised", "few", "class", "float"],
)  # fmt: skip
def test_images_and_labels_that_are_none(
    name: str, x: Tensor, y: Tensor, message: str, net: nn.Module
) -> None:
    with pytest.raises(UserError, match=message):
        ALL[name](net, x, y, eps=0.1)


def test_one_class_is_none_to_choose_from() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    with pytest.raises(UserError, match="at least 2 classes"):
        deepfool(model, images(), torch.zeros(12, dtype=torch.int64))


@pytest.mark.parametrize(
    ("attack", "wrong", "message"),
    [
        (deepfool, {"classes": 1}, "classes at least 2"),
        (deepfool, {"overshoot": -0.1}, "overshoot"),
        (deepfool, {"norm": "l1"}, "linf, l2; got 'l1'"),
        (cw, {"norm": "linf"}, "one of l2; got 'linf'"),
        (cw, {"binary_search": 0}, "at least 1"),
        (cw, {"step_size": 0.0}, "above 0"),
        (cw, {"initial_const": 0.0}, "above 0"),
        (cw, {"initial_const": math.nan}, "above 0"),
        (cw, {"confidence": -1.0}, "confidence"),
    ],
)
def test_own_settings_that_cannot_be_meant(
    attack: Attack, wrong: dict[str, Any], message: str, net: nn.Module
) -> None:
    with pytest.raises(UserError, match=message):
        attack(net, images(), torch.zeros(12, dtype=torch.int64), **wrong)


@pytest.mark.parametrize("name", ["fab-t", "deepfool", "cw"])
def test_evaluate_costs_less(name: str, net: nn.Module) -> None:
    x = images(20)
    y = labels(net, x)
    costs = {}
    for mode in ("represent", "evaluate"):
        counter = Counter(net)
        ALL[name](counter, x, y, eps=1.0, mode=mode)
        costs[mode] = counter.images
    if name == "deepfool":  # ends at its first success anyway
        assert costs["evaluate"] == costs["represent"]
    else:
        assert costs["evaluate"] < 0.6 * costs["represent"]


@pytest.mark.parametrize("classes", [2, 4, 99])
def test_deepfool_ends_at_its_first_success(classes: int) -> None:
    """One step on a linear network: the class, the start, the step; a backward a wrong class."""
    model = linear(6, 192).float()
    x = images(10, low=0.4, high=0.6)
    y = labels(model, x)
    counter = Backwards(model)
    deepfool(counter, x, y, classes=classes)
    assert counter.images == 3 * 10
    assert counter.back == 10 * (min(classes, 6) - 1)


# --- boundaries ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nearest_boundary_is_the_nearest_of_the_jacobians(norm: str) -> None:
    net, x = ConvNet().eval(), images(8)
    y = labels(net, x)
    search = Search(net, x, y, None, norm, "represent")
    assert all(set(row) == set(range(CLASSES)) - {int(k)} for row, k in
               zip(search.others.tolist(), y, strict=True))  # fmt: skip
    assert (search.logits.gather(1, search.others).diff(dim=1) <= 0).all()  # most likely first
    leaf, logits = search.forward(search.clean)
    gap, gradient, size = nearest_boundary(leaf, logits, y, search.others, norm)
    for i in range(8):
        jacobian = torch.autograd.functional.jacobian(
            lambda image: net(image)[0], x[i : i + 1]
        ).flatten(1)
        f = search.logits[i] - search.logits[i, y[i]]
        w = jacobian - jacobian[y[i]]
        distance = f.abs() / dual_norm(w, norm)
        distance[y[i]] = torch.inf
        k = int(distance.argmin())
        torch.testing.assert_close(gap[i], f[k], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient[i], w[k], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(size[i], dual_norm(w, norm)[k], atol=1e-5, rtol=1e-4)


def test_dual_norm_of_tiny_gradients() -> None:
    w = torch.tensor([[3e-30, -4e-30], [0.0, 0.0], [3e30, 4e30]])
    for norm, wanted in (("linf", [7e-30, 0, 7e30]), ("l2", [5e-30, 0, 5e30]),
                         ("l1", [4e-30, 0, 4e30])):  # fmt: skip
        torch.testing.assert_close(dual_norm(w, norm), torch.tensor(wanted), rtol=1e-6, atol=0)
