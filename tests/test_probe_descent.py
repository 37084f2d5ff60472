"""Probes trained by steps: against autograd, in any memory layout, shared where layers repeat."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from probe_source import MadeUp, blobs
from torch import Tensor, nn

from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, draw, to_float
from repsim.extract.conditions import Source as Condition
from repsim.hooks import capture
from repsim.optim import make_optimizer, make_schedule
from repsim.probe import fit as fit_module
from repsim.probe import probe_live
from repsim.probe.classifiers import Linear
from repsim.probe.descent import fit_descent
from repsim.probe.fit import fit_probes
from repsim.probe.layout import Layout
from repsim.probe.reduce import choose_reduction
from repsim.probe.settings import Settings, Training
from repsim.probe.source import LiveSource
from repsim.progress import Silent
from repsim.runtime import Runtime

CLEAN = [Training("clean", ("clean",))]


@pytest.fixture(scope="module")
def few(digits_train: ImageData, digits_test: ImageData) -> tuple[ImageData, ImageData]:
    return draw(digits_train, 200), draw(digits_test, 60)


def by_autograd(x: Tensor, y: Tensor, classes: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """W and b of z/√features, z standardised, all images a batch, as it is written by hand."""
    z = (x - x.mean(0)) / x.std(0, correction=0) / x.shape[1] ** 0.5
    weight, bias = (nn.Parameter(torch.zeros(n)) for n in ((classes, x.shape[1]), (classes,)))
    optimiser = make_optimizer([weight, bias], name=settings.solver, lr=settings.lr)
    schedule = make_schedule(optimiser, name="cosine", lr=settings.lr, steps=settings.epochs)
    (strength,) = settings.strengths
    for _ in range(settings.epochs):
        optimiser.zero_grad()
        loss = F.cross_entropy(z @ weight.T + bias, y) + strength / 2 * weight.square().sum()
        loss.backward()
        optimiser.step()
        schedule.step()
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_steps_are_those_of_autograd(solver: str, memory: torch.memory_format) -> None:
    """Of more features than a piece has, some far from 0, in either order in memory."""
    flat, y = blobs(150, 3 * 40 * 50, spread=3)
    flat[:, ::7] += 20
    settings = Settings(solver=solver, strengths=(0.01,), epochs=12, batch_size=200).checked()
    held_out = torch.arange(150) >= 120
    source = MadeUp({("clean", "layer"): flat.view(150, 3, 40, 50)}, y)
    source.values["clean", "layer"] = source.values["clean", "layer"].contiguous(
        memory_format=memory
    )
    found = fit_descent(source, ["layer"], CLEAN, held_out, 4, settings, Silent())["layer", "clean"]
    weight, bias = by_autograd(flat[:120], y[:120], 4, settings)
    assert found.weight.shape == (4, 6000)
    wanted = Linear(weight, bias, found.mean, found.scale, 0.01)
    scale = (flat[:120].std(0, correction=0) * 6000**0.5).reciprocal()
    assert found.mean == pytest.approx(flat[:120].mean(0), abs=1e-4)
    assert found.scale == pytest.approx(scale, rel=1e-4)
    # Adam divides a gradient that is 0 but for rounding by its own size.
    rounding = 1e-2 if solver == "adam" else 1e-5
    assert found.scores(flat) == pytest.approx(wanted.scores(flat), abs=rounding)


@pytest.mark.parametrize(
    "output",
    [
        torch.randn(4, 3, 5, 2),
        torch.randn(4, 3, 5, 2).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 6, 9).transpose(1, 2),
        torch.randn(4, 7, 5)[:, 0],
        torch.randn(4, 8),
        torch.randn(4, 8, 1, 1),
    ],
)
def test_layouts(output: Tensor) -> None:
    layout = Layout.of(output)
    rows = layout.rows(output)
    assert rows.data_ptr() == output.data_ptr()  # nothing was copied
    assert torch.equal(layout.flattened(rows, output.shape[1:]), output.flatten(1))
    # Another layout is brought into this one.
    assert torch.equal(layout.rows(output.contiguous()), rows)


def test_live_weights_are_those_of_the_flattened_layer(
    loaded: LoadedModel, few: tuple[ImageData, ImageData]
) -> None:
    """Whatever the order in memory in which they were trained."""
    train, test = few
    report = probe_live(loaded, train, test, layers=["layer2.0"], solver="adam", epochs=3,
                        hold=False, runtime=Runtime.of("cpu", channels_last=True))  # fmt: skip
    weights = {k: torch.from_numpy(v) for k, v in report.weights["layer2.0", "clean"].items()}
    with torch.no_grad(), capture(loaded.model, ["layer2.0"]) as captured:
        loaded.model(to_float(test.images))
        scores = Linear(**weights, strength=0.0).scores(captured["layer2.0"].flatten(1))
    found = report.predictions["layer2.0", "clean", "clean", "none"]
    assert (scores.argmax(1).numpy() == found).mean() > 0.98


@pytest.mark.parametrize("solver", ["ridge", "adam"])
def test_layers_that_repeat_share_a_probe(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], solver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A block, its last ReLU and the stage that ends with it: one training, three rows."""
    trained: list[str] = []
    real = fit_module._fit

    def counted(source: object, names: Sequence[str], *given: object) -> object:
        trained.extend(names)
        return real(source, names, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_module, "_fit", counted)
    options = {"solver": solver, "epochs": 2}
    names = ["layer1.0.bn2", "layer1.0.relu2", "layer1.0", "layer1", "avgpool"]
    together = probe_live(loaded, *few, layers=names, **options)
    assert trained == ["layer1.0.bn2", "layer1.0.relu2", "avgpool"]
    assert together.layers == names
    for name in names:
        alone = probe_live(loaded, *few, layers=[name], **options)
        key = (name, "clean", "clean", "none")
        assert (alone.predictions[key] == together.predictions[key]).all()
        mine, theirs = (r.weights[name, "clean"]["weight"] for r in (alone, together))
        assert mine == pytest.approx(theirs, abs=1e-5)


class Squares(nn.Module):
    """Hands on what it gets, unless it gets many images."""

    def forward(self, x: Tensor) -> Tensor:
        return x if len(x) <= 2 else x**2


def live(net: nn.Module, data: ImageData, names: Sequence[str]) -> LiveSource:
    clean = Condition("clean", "clean", None, "linf", lambda batch: (batch.images, None))
    reductions = {name: choose_reduction("flatten", (16,), 16) for name in names}
    loaded = SimpleNamespace(model=net.eval())
    return LiveSource(loaded, data, [clean], reductions, Runtime.of("cpu"), 50, Silent())  # type: ignore[arg-type]


def test_layers_that_repeat_only_sometimes_are_told_apart(
    few: tuple[ImageData, ImageData],
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(
        flat=nn.Flatten(), first=nn.Linear(64, 16), then=Squares(), head=nn.Linear(16, 10)
    ))  # fmt: skip
    source = live(net, few[0], ["first", "then"])
    assert source.repeats() == {"then": "first"}
    settings = Settings(solver="adam", epochs=1, strengths=(0.0,), hold=False).checked()
    found = fit_probes(source, CLEAN, 10, settings, Silent(), [])
    alone = fit_probes(live(net, few[0], ["then"]), CLEAN, 10, settings, Silent(), [])
    x = torch.randn(5, 16)
    assert found["then", "clean"].scores(x) == pytest.approx(alone["then", "clean"].scores(x))
    assert not torch.allclose(found["first", "clean"].scores(x), found["then", "clean"].scores(x))


def test_what_an_in_place_relu_changes_is_no_repeat(few: tuple[ImageData, ImageData]) -> None:
    net = nn.Sequential(OrderedDict(
        flat=nn.Flatten(), first=nn.Linear(64, 16), relu=nn.ReLU(inplace=True),
        same=nn.Identity(), head=nn.Linear(16, 10),
    ))  # fmt: skip
    assert live(net, few[0], ["first", "relu", "same"]).repeats() == {"same": "relu"}
