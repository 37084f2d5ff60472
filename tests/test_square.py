"""The Square attack: its authors' code step by step, the modes, the ball, draws of each image."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from repsim.attacks.ball import per_image, perturbation_norm, project
from repsim.attacks.square import _Draws, _Pyramids, fraction, pyramids, side_length, square
from repsim.errors import UserError
from repsim.losses import margin

module = __import__("sys").modules["repsim.attacks.square"]
CLASSES = 5
EPS = {"linf": 0.06, "l2": 0.7, "l1": 6.0}
NORMS = ["linf", "l2", "l1"]


class ConvNet(nn.Module):
    """Small, non-linear, without coupling inside a batch, of any image size; keeps what it saw."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.head = nn.Linear(32, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            self.head.weight.mul_(20)
        self.forwards, self.images = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards, self.images = self.forwards + 1, self.images + len(x)
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def images(batch: int = 12, channels: int = 3, height: int = 10, width: int = 10) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def predictions(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1)


def margins(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(net(x), y)


@pytest.fixture
def net() -> ConvNet:
    return ConvNet().eval()


# --- the authors' code -----------------------------------------------------------------------


class Replay:
    """Draws as SquareAttack makes them: from torch's generator, positions shared by the batch."""

    norm, channels, height, width = "linf", 3, 10, 10

    def __init__(self, ids: Tensor, seed: int, restart: int) -> None:
        self.batch = len(ids)
        if restart == 0:
            torch.manual_seed(seed)

    def start(self, count: int) -> Tensor:
        if self.norm == "linf":
            return torch.rand(self.batch, self.channels, 1, self.width).flatten(1)
        tiles = count // (1 + self.channels)
        columns = []
        for _ in range(tiles):  # the turn of a tile, then the signs
            turn = torch.rand(1).expand(self.batch, 1)
            columns += [turn, torch.rand(self.batch, self.channels, 1, 1).flatten(1)]
        return torch.cat(columns, 1)

    def query(self, k: int, count: int) -> Tensor:
        if self.norm == "linf":
            shared = torch.cat([torch.rand(1), torch.rand(1), torch.rand(self.channels)])
            return shared.expand(self.batch, count)
        shared = torch.cat([torch.rand(1) for _ in range(5)])
        return torch.cat(
            [shared.expand(self.batch, 5), torch.rand(self.batch, self.channels, 1, 1).flatten(1)],
            1,
        )

    def keep(self, rows: Tensor) -> None:
        self.batch = len(rows)


@pytest.fixture
def double() -> Iterator[None]:
    """So that roundings, which differ, decide nothing: the search is chaotic."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def exact_projection(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    """In the place of theirs, which is float32 and whose ball is smaller by a millionth."""
    return project(x + delta, x, eps / (1 - 1e-6), "l1") - x - delta


def authors(
    norm: str, batch: int, steps: int, rescale: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[ConvNet, Tensor, Tensor, Tensor, list[Tensor]]:
    """Network, images, labels, the result of their attack and what it tried."""
    monkeypatch.setattr(Replay, "norm", norm)
    monkeypatch.setattr("pyautoattack.square.L1_projection", exact_projection)
    net = ConvNet()
    x = images(batch)
    y, watched = predictions(net, x), Watched(net)
    reference = SquareAttack(
        watched, norm=norm.capitalize(), n_queries=steps, eps=EPS[norm], seed=3,
        resc_schedule=rescale,
    )  # fmt: skip
    found = reference.perturb(x, y)
    return net, x, y, found, watched.seen[1:-1]  # not the clean images and the look at the result


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("batch", [1, 16])
def test_linf_is_the_authors_code(
    rescale: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image of every query, hence margins, what is accepted, who leaves, the verdict."""
    net, x, y, wanted, theirs = authors("linf", batch, 400, rescale, monkeypatch)
    monkeypatch.setattr(module, "_Draws", Replay)
    record: dict[str, Tensor] = {}
    watched = Watched(net)
    found = square(
        watched, x, y, eps=EPS["linf"], queries=400, rescale=rescale, mode="evaluate", seed=3,
        record=record,
    )  # fmt: skip
    assert len(watched.seen) == len(theirs)
    for mine, their in zip(watched.seen, theirs, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-12, rtol=0)
    fooled = predictions(net, wanted) != y
    assert torch.equal(record["first_success"] >= 0, fooled)
    torch.testing.assert_close(found[fooled], wanted[fooled], atol=1e-12, rtol=0)
    if batch > 1:
        assert 0 < fooled.sum() < batch
        assert len(record["first_success"].unique()) > 3


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_proposals_are_the_authors(
    norm: str, rescale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """l2 and l1: each query from what they had kept, and the verdict of a whole run.

    What is left of the budget is often 0 but for roundings, and its square root then has the
    shape of noise: in these norms nobody else's run stays equal to the last query.
    """
    steps, shape = 150, (16, 3, 10, 10)
    net, x, y, wanted, theirs = authors(norm, 16, steps, rescale, monkeypatch)
    torch.manual_seed(3)
    search = _Pyramids(x, EPS[norm], Replay(torch.arange(16), 3, 0), norm)  # type: ignore[arg-type]
    kept = search.start()
    torch.testing.assert_close(kept, theirs[0], atol=1e-7, rtol=0)
    best = margins(net, kept, y)
    for k, tried in enumerate(theirs[1:]):
        stay = torch.nonzero(best < 0)[:, 0]
        search.keep(stay)
        y, best = y[stay], best[stay]
        search.x = kept = kept[stay]
        side = side_length(fraction(k, 0.8, steps if rescale else None), shape, norm)
        torch.testing.assert_close(search.propose(k, side), tried, atol=1e-7, rtol=0)
        size = margins(net, tried, y)
        kept, best = torch.where(per_image(size > best, x), tried, kept), size.maximum(best)

    monkeypatch.setattr(module, "_Draws", Replay)
    y = predictions(net, x)
    found = square(
        net, x, y, eps=EPS[norm], norm=norm, queries=steps, rescale=rescale, mode="evaluate", seed=3
    )
    fooled = predictions(net, wanted) != y
    assert 1 < fooled.sum() < 15
    assert ((predictions(net, found) != y) == fooled).sum() >= 15


class Watched(nn.Module):
    """Keeps a copy of all it is called with."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return self.net(x).float()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 12])
def test_pyramids_are_the_authors(norm: str, side: int) -> None:
    reference = SquareAttack(None, norm=norm.upper())
    reference.device = "cpu"
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        turned = bool(torch.rand(1) > 0.5)
        torch.manual_seed(seed)
        wanted = reference.eta(side)
        torch.testing.assert_close(
            pyramids(side, norm)[int(turned)].float(), wanted, atol=1e-6, rtol=0
        )
        seen.add(turned)
    assert seen == {False, True}


@given(st.integers(0, 12000), st.sampled_from([0.05, 0.3, 0.8]), st.booleans())
def test_schedule_is_the_authors(k: int, p_init: float, rescale: bool) -> None:
    reference = SquareAttack(None, n_queries=777, p_init=p_init, resc_schedule=rescale)
    assert fraction(k, p_init, 777 if rescale else None) == reference.p_selection(k)


def test_sides() -> None:
    assert side_length(0.8, (1, 3, 32, 32), "linf") == 29
    assert side_length(0.8, (1, 3, 32, 32), "l2") == 29
    assert side_length(0.4, (1, 3, 32, 32), "linf") == 20
    assert side_length(0.4, (1, 3, 32, 32), "l2") == 21
    assert side_length(1e-4, (1, 3, 32, 32), "linf") == 1
    assert side_length(1e-4, (1, 3, 32, 32), "l1") == 3
    assert side_length(0.8, (1, 3, 8, 40), "linf") == 8


# --- the ball and the box --------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, float, str, dict[str, object]]:
    shape = [
        draw(st.integers(1, 3)), draw(st.sampled_from([1, 3])), draw(st.integers(4, 9)),
        draw(st.integers(4, 9)),
    ]  # fmt: skip
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    x = (x * 1.5 - 0.25).clamp(0, 1)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    norm = draw(st.sampled_from(NORMS))
    largest = 1.0 if norm == "linf" else 20.0
    eps = draw(st.floats(0, largest) | st.sampled_from([0.0, 1e-8, 1e-5, 8 / 255, 0.3]))
    how: dict[str, object] = {
        "mode": draw(st.sampled_from(["represent", "evaluate", "last"])),
        "queries": draw(st.integers(1, 30)),
        "seed": draw(st.integers(0, 9)),
        "restarts": draw(st.integers(1, 2)),
        "p_init": draw(st.sampled_from([0.01, 0.8, 1.0])),
    }
    return x, eps, norm, how


@given(problems())
@settings(max_examples=80, deadline=None)
def test_never_outside_the_ball_or_the_box(
    problem: tuple[Tensor, float, str, dict[str, object]],
) -> None:
    x, eps, norm, how = problem
    kept = x.clone()
    y = torch.arange(len(x)) % CLASSES
    watched = Watched(ConvNet(x.shape[1]))
    found = square(watched, x, y, eps=eps, norm=norm, **how)  # type: ignore[arg-type]
    assert torch.equal(x, kept)
    assert found.is_contiguous(memory_format=torch.channels_last) or not x.is_contiguous(
        memory_format=torch.channels_last
    )
    for attacked in [found, *(tried for tried in watched.seen if len(tried) == len(x))]:
        assert attacked.shape == x.shape
        assert attacked.dtype == torch.float32
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        delta = (attacked.double() - x.double()).flatten(1)
        ulp, d = 2.0**-24, delta.shape[1]
        if norm == "linf":
            assert delta.abs().max() <= eps + ulp
        elif norm == "l2":
            assert delta.norm(dim=1).max() <= eps * (1 + 1e-6) + ulp * math.sqrt(d)
        else:
            assert delta.abs().sum(1).max() <= eps * (1 + 1e-6) + ulp * d
    if eps == 0:
        assert torch.equal(found, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_dtypes(dtype: torch.dtype, norm: str) -> None:
    x = images().to(dtype)
    net = ConvNet().to(dtype)
    y = predictions(net, x)
    found = square(net, x, y, eps=EPS[norm], norm=norm, queries=30)
    assert found.dtype == dtype
    assert found.min() >= 0
    assert found.max() <= 1
    delta = found.double() - x.double()
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    size = delta.flatten(1).norm(order, dim=1)
    # What rounding to the dtype may add to each pixel below 1.
    ulp = torch.finfo(dtype).eps / 4
    d = delta[0].numel()
    assert (size <= EPS[norm] * (1 + 1e-6) + ulp * d ** (1 / order)).all()
    assert (size > 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_images_of_any_shape(norm: str) -> None:
    """Every pixel but the last row and column can be reached, at all sizes."""
    for channels, height, width in [(1, 6, 15), (3, 15, 6), (4, 3, 9), (1, 1, 7), (1, 28, 28)]:
        x = images(4, channels, height, width)
        net = ConvNetAnySize(channels)
        y = predictions(net, x)
        record: dict[str, Tensor] = {}
        found = square(net, x, y, eps=EPS[norm], norm=norm, queries=25, record=record)
        assert found.shape == x.shape
        assert (perturbation_norm(found - x, norm) > 0).all()
        torch.testing.assert_close(record["loss"], margins(net, found, y), atol=1e-5, rtol=1e-5)


class ConvNetAnySize(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(channels, 8, 3, padding=1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).amax((2, 3))) * 20


# --- a linear model --------------------------------------------------------------------------


def test_reaches_the_optimum_of_a_linear_model_but_for_the_border() -> None:
    """linf: each channel of a pixel goes to the sign of its weight, one sign a single pixel."""
    torch.manual_seed(0)
    head = nn.Linear(3 * 6 * 6, 2)
    model = nn.Sequential(nn.Flatten(), head)
    x, y, eps = images(4, 3, 6, 6) * 0.6 + 0.2, torch.tensor([0, 1, 0, 1]), 0.05
    direction = (head.weight[1 - y] - head.weight[y]).detach().view_as(x).sign()
    found = square(model, x, y, eps=eps, queries=2000, p_init=0.04)
    # A square of one pixel is placed in rows 0 to h - 2: see `_places`.
    inner = (slice(None), slice(None), slice(0, 5), slice(0, 5))
    torch.testing.assert_close(found[inner], (x + eps * direction)[inner], atol=1e-6, rtol=0)
    gain = margins(model, found, y) - margins(model, x, y)
    assert (gain > 0.6 * eps * (head.weight[0] - head.weight[1]).abs().sum()).all()


# --- draws belong to images ------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", ["represent", "evaluate"])
def test_attack_of_a_batch_is_the_attack_of_its_parts(net: ConvNet, mode: str, norm: str) -> None:
    x, ids = images(), torch.arange(12) * 17 - 5
    y = predictions(net, x)

    def attacked(rows: Tensor) -> list[Tensor]:
        record: dict[str, Tensor] = {}
        found = square(
            net, x[rows], y[rows], ids=ids[rows], seed=1, mode=mode, norm=norm, record=record,
            eps=EPS[norm], queries=70 if norm != "l1" else 25, restarts=2,
        )  # fmt: skip
        return [found, record["loss"], record["first_success"]]

    whole = attacked(torch.arange(12))
    assert 0 < (whole[2] >= 0).sum() < 12
    order = torch.tensor([3, 9, 0, 1, 11, 2, 4, 8, 5, 7, 6, 10])
    for split in (order.split(5), order[:3].split(1)):
        parts = [torch.cat(part) for part in zip(*(attacked(r) for r in split), strict=True)]
        rows = torch.cat(split)
        torch.testing.assert_close(parts[0], whole[0][rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(parts[1], whole[1][rows], atol=1e-3, rtol=1e-3)
        assert torch.equal(parts[2], whole[2][rows])


def test_each_image_restart_and_query_has_its_own_draws() -> None:
    ids = torch.tensor([4, 5, 4])
    first = _Draws(ids, seed=0, restart=0)
    queries = torch.stack([first.query(k, 7) for k in range(150)])
    assert torch.equal(queries[:, 0], queries[:, 2])
    assert len(queries[:, :2].flatten().unique()) > 0.99 * queries[:, :2].numel()
    other = _Draws(ids, seed=0, restart=1)
    assert (
        not torch.isin(torch.stack([other.query(k, 7) for k in range(64)]), queries).float().mean()
        > 0.01
    )
    assert not torch.equal(first.start(7), other.start(7))
    kept = _Draws(ids, seed=0, restart=0)
    for k in range(3):
        kept.query(k, 7)
    kept.keep(torch.tensor([1]))
    later = [kept.query(k, 7) for k in range(3, 150)]
    assert torch.equal(torch.cat(later), queries[3:, 1])


def test_squares_are_everywhere_but_in_the_last_row() -> None:
    """Places are uniform over 0 to h - s - 1, signs are as often one as the other."""
    seen: list[Tensor] = []

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return torch.stack([0 * x[:, 0, 0, 0] + 2, 0 * x[:, 0, 0, 0]], 1)

    x = torch.full((400, 1, 5, 7), 0.5)
    square(Flat(), x, torch.zeros(400, dtype=torch.int64), eps=0.1, queries=40, p_init=0.02)
    start = seen[0]
    changed = torch.stack([tried != start for tried in seen[1:]]).float().sum((0, 1, 2))
    assert (changed[-1] == 0).all()
    assert (changed[:, -1] == 0).all()
    # Half of the squares have the sign that the stripe had, and change nothing.
    expected = 400 * 40 / (4 * 6) / 2
    assert (changed[:-1, :-1] - expected).abs().max() < 5 * math.sqrt(expected)


# --- the modes -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_evaluate_runs_only_what_is_not_fooled_yet(net: ConvNet, norm: str) -> None:
    x = images(30)
    y = predictions(net, x)
    y[:3] = (y[:3] + 1) % CLASSES
    steps = 60
    net.forwards = net.images = 0
    record: dict[str, Tensor] = {}
    found = square(
        net, x, y, eps=EPS[norm], norm=norm, queries=steps, mode="evaluate", record=record
    )
    first = record["first_success"]
    queries = torch.where(first < 0, steps + 1, first)
    assert net.images == int(queries.sum())
    assert net.forwards == int(queries.max())
    assert 0 < (first < 0).sum() < 27
    assert (first[first >= 0] >= 1).all()
    assert torch.equal(predictions(net, found) != y, first >= 0)
    torch.testing.assert_close(record["loss"], margins(net, found, y), atol=1e-5, rtol=1e-5)
    again = square(net, x, y, eps=EPS[norm], norm=norm, queries=steps, mode="last")
    assert torch.equal(again, found)
    # All are fooled at the start: one forward, however many restarts.
    wrong = (predictions(net, x) + 1) % CLASSES
    net.forwards = 0
    square(net, x, wrong, eps=1e-6, norm=norm, queries=steps, restarts=3, mode="evaluate")
    assert net.forwards == 1


@pytest.mark.parametrize("norm", NORMS)
def test_represent_goes_on_after_success(net: ConvNet, norm: str) -> None:
    x = images(20)
    y = predictions(net, x)
    steps = 80
    watched = Watched(net)
    record: dict[str, Tensor] = {}
    stopped: dict[str, Tensor] = {}
    found = square(watched, x, y, eps=EPS[norm], norm=norm, queries=steps, record=record)
    square(net, x, y, eps=EPS[norm], norm=norm, queries=steps, mode="evaluate", record=stopped)
    assert torch.equal(record["first_success"], stopped["first_success"])
    fooled = stopped["first_success"] >= 0
    assert (record["loss"] >= stopped["loss"] - 1e-5).all()
    assert (record["loss"] > stopped["loss"] + 1e-3)[fooled].any()
    # The strongest of all that were tried, on every image.
    all_margins = torch.stack([margins(net, tried, y) for tried in watched.seen])
    assert len(all_margins) == steps + 1
    torch.testing.assert_close(record["loss"], all_margins.amax(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(margins(net, found, y), record["loss"], atol=1e-5, rtol=1e-5)
    assert (perturbation_norm(found - x, norm) > 0.4 * EPS[norm]).all()


@pytest.mark.parametrize("mode", ["represent", "evaluate"])
def test_restarts_only_ever_help(net: ConvNet, mode: str) -> None:
    x = images(30)
    y = predictions(net, x)
    fooled, loss = torch.zeros(30, dtype=torch.bool), torch.full((30,), -torch.inf)
    counts = []
    for restarts in (1, 2, 4):
        record: dict[str, Tensor] = {}
        found = square(net, x, y, eps=0.05, queries=3, restarts=restarts, mode=mode, record=record)
        now = record["first_success"] >= 0
        assert not (fooled & ~now).any()
        if mode == "evaluate":
            assert torch.equal(predictions(net, found) != y, now)
        assert (record["loss"] >= loss - 1e-6).all()
        torch.testing.assert_close(record["loss"], margins(net, found, y), atol=1e-5, rtol=1e-5)
        fooled, loss = now, record["loss"]
        counts.append(int(now.sum()))
    assert 0 < counts[0] < counts[-1] < 30


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("mode", ["represent", "evaluate"])
def test_small_batches_and_eps_0(net: ConvNet, batch: int, mode: str) -> None:
    x = images(batch)
    y = predictions(net, x)
    for eps in (0.0, 0.05):
        record: dict[str, Tensor] = {}
        found = square(net, x, y, eps=eps, queries=5, mode=mode, record=record)
        assert found.shape == x.shape
        assert record["loss"].shape == record["first_success"].shape == (batch,)
        assert found is not x
        if eps == 0:
            assert torch.equal(found, x)
            assert torch.equal(record["first_success"], torch.full((batch,), -1))
            torch.testing.assert_close(record["loss"], margins(net, x, y), atol=1e-5, rtol=1e-5)


# --- the network, and what cannot be meant ---------------------------------------------------


def test_the_network_is_left_as_it_was(net: ConvNet) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), net).train()
    model[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    before = [b.clone() for b in model.buffers()]
    x = images()
    square(model, x, torch.zeros(12, dtype=torch.int64), queries=3)
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    square(model, x, torch.zeros(12, dtype=torch.int64), queries=3, train_mode=True)
    assert not torch.equal(before[0], model[0].running_mean)  # type: ignore[arg-type]


class Breaks(nn.Module):
    """NaN, but only for the images of one query; else class 0, which NaN has as its argmax too."""

    def __init__(self, net: nn.Module, when: int) -> None:
        super().__init__()
        self.net, self.calls, self.when = net, 0, when

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits = self.net(x) + 100 * F.one_hot(torch.tensor(0), CLASSES)
        return logits * (torch.nan if self.calls == self.when else 1.0)


@pytest.mark.parametrize("mode", ["represent", "evaluate"])
@pytest.mark.parametrize("when", [1, 4])
def test_nan_is_not_robustness(net: ConvNet, mode: str, when: int) -> None:
    x = images()
    with pytest.raises(UserError, match="finite"):
        square(Breaks(net, when), x, torch.zeros(12).long(), eps=1e-4, queries=6, mode=mode)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": 0}, "at least 1; got 0"),
        ({"restarts": 0}, "at least 1; got 5 and 0"),
        ({"p_init": 0.0}, "p_init expects"),
        ({"p_init": 1.1}, "p_init expects"),
        ({"mode": "best"}, "represent, evaluate, last; got 'best'"),
        ({"norm": "l3"}, "norm expects"),
        ({"eps": 8}, "try 8/255"),
    ],
)
def test_settings_that_cannot_be_meant(
    net: ConvNet, wrong: dict[str, object], message: str
) -> None:
    how = {"queries": 5, **wrong}
    with pytest.raises(UserError, match=message):
        square(net, images(), torch.zeros(12, dtype=torch.int64), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (images() * 2, torch.zeros(12, dtype=torch.int64), "pixels in"),
        (images(), torch.zeros(3, dtype=torch.int64), "one an image"),
        (images(), torch.full((12,), CLASSES), "classes 0 to 4"),
    ],
)
def test_images_and_labels_that_cannot_be_meant(
    net: ConvNet, x: Tensor, y: Tensor, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        square(net, x, y, queries=3)
