"""AutoAttack: the published budgets, and verdicts no higher than those of the authors' code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from repsim.attacks import autoattack, parse_attack, perturbation_norm
from repsim.attacks.autoattack import VERSIONS, Stage, stages
from repsim.checkpoint import load_model
from repsim.data import ImageData, draw, to_float
from repsim.errors import UserError
from repsim.evaluate import evaluate

EPS = 0.15
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def reference(norm: str, version: str) -> AutoAttack:
    return AutoAttack(nn.Identity(), norm=NORMS[norm], eps=0.1, version=version, seed=0)


def budget(stage: Stage) -> tuple[object, ...]:
    s = stage.settings
    length = s["queries"] if stage.name == "square" else s["steps"]
    return stage.name, length, s.get("restarts", 1), s.get("targets", 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_budgets_are_those_of_the_authors_code(norm: str, version: str) -> None:
    theirs = reference(norm, version)
    wanted = []
    for name in theirs.attacks_to_run:
        wanted.append({
            "apgd-ce": (name, theirs.apgd.n_iter, theirs.apgd.n_restarts, 0),
            "apgd-dlr": (name, theirs.apgd.n_iter, theirs.apgd.n_restarts, 0),
            "apgd-t": (
                name, theirs.apgd_targeted.n_iter, theirs.apgd_targeted.n_restarts,
                theirs.apgd_targeted.n_target_classes,
            ),
            "fab": (name, theirs.fab.n_iter, theirs.fab.n_restarts, 0),
            # The authors set one restart when they come to it.
            "fab-t": (name, theirs.fab.n_iter, 1, theirs.fab.n_target_classes),
            "square": (name, theirs.square.n_queries, theirs.square.n_restarts, 0),
        }[name])  # fmt: skip
    assert [budget(stage) for stage in stages(version, norm)] == wanted
    for stage in stages(version, norm):
        if stage.name in ("apgd-ce", "apgd-dlr"):
            assert stage.settings.get("eot", 1) == theirs.apgd.eot_iter
            assert stage.settings["loss"] == stage.name.removeprefix("apgd-")
    assert theirs.square.p_init == 0.8
    assert theirs.apgd.thr_decr == 0.75
    assert (theirs.fab.alpha_max, theirs.fab.eta, theirs.fab.beta) == (0.1, 1.05, 0.9)


def test_the_short_form_is_no_more_than_the_standard() -> None:
    standard = {stage.name: stage.settings for stage in stages("standard", "linf")}
    for stage in stages("short", "linf"):
        length = "queries" if stage.name == "square" else "steps"
        assert stage.settings[length] < standard[stage.name][length]
        assert stage.settings.get("targets", 0) <= standard[stage.name].get("targets", 0)
    with pytest.raises(UserError, match="version expects one of standard, plus, rand, short"):
        stages("fast", "linf")


@pytest.fixture(scope="module")
def few(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 60)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cascade with budgets of a few seconds, in both codes."""
    module = import_module("repsim.attacks.autoattack")  # not the function of this name

    def short(name: str) -> dict[str, int]:
        return {"queries": 100} if name == "square" else {"steps": 15}

    def small(cascade: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(Stage(s.name, s.attack, {**s.settings, **short(s.name)}) for s in cascade)

    monkeypatch.setitem(module._VERSIONS, "standard", small(module._VERSIONS["standard"]))
    monkeypatch.setattr(module, "_STANDARD_L1", small(module._STANDARD_L1))


def official(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
    """Whether each image stays right under the authors' code, (batch,) bool."""
    theirs = AutoAttack(model, norm=NORMS[norm], eps=eps, version="standard", seed=0)
    for attack in (theirs.apgd, theirs.apgd_targeted):
        attack.n_iter = attack.n_iter_orig = 15
        attack.n_iter_2, attack.n_iter_min, attack.size_decr = 3, 1, 1
    theirs.fab.n_iter = 15
    theirs.square.n_queries = 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attacked, _ = theirs.run_standard_evaluation(x, y)
    with torch.no_grad():
        return model(attacked).argmax(1) == y


@pytest.mark.parametrize(
    ("scenario", "norm", "eps"),
    [("at", "linf", 0.2), ("st", "linf", 0.05), ("at", "l2", 1.0), ("at", "l1", 1.5)],
)
def test_verdicts_are_those_of_the_authors_code_or_lower(
    scenario: str, norm: str, eps: float, checkpoints: dict[str, Path], few: ImageData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    quick(monkeypatch)
    model = load_model(checkpoints[scenario]).model
    x, y = to_float(few.images), few.labels
    attacked = autoattack(model, x, y, eps=eps, norm=norm, mode="evaluate", ids=few.keys)
    with torch.no_grad():
        ours = model(attacked).argmax(1) == y
        clean = model(x).argmax(1) == y
    theirs = official(model, x, y, eps, norm)
    assert 0 < ours.sum() < clean.sum()  # a size at which there is something to disagree about
    # Random starts differ: an image at the very edge may go either way.
    assert int((ours & ~theirs).sum()) <= 1
    assert int(ours.sum()) <= int(theirs.sum()) + 1


def test_the_cascade_is_told_stage_by_stage(
    checkpoints: dict[str, Path], few: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    loaded = load_model(checkpoints["at"])
    x, y = to_float(few.images), few.labels
    record: dict[str, Tensor] = {}
    told: list[str] = []
    attacked = autoattack(
        loaded.model, x, y, eps=0.2, mode="evaluate", ids=few.keys, record=record, tell=told.append
    )
    with torch.no_grad():
        logits, clean = loaded.model(attacked), loaded.model(x).argmax(1) == y
    lost = logits.argmax(1) != y
    assert torch.equal(lost, (record["first_success"] >= 0))
    assert torch.equal(record["stage"] >= 0, lost & clean)
    assert torch.equal(attacked[~lost], x[~lost])  # robust images come back clean
    assert (perturbation_norm(attacked - x, "linf") <= 0.2 + 1e-6).all()
    assert [line.split(":")[0] for line in told] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    spec = parse_attack("autoattack,eps=0.2", eps=EPS)
    found = evaluate(loaded, few, [spec])
    after = found.summary()["robust_accuracy_after"]["autoattack"]
    assert list(after) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    values = list(after.values())
    assert values == sorted(values, reverse=True)
    assert values[-1] == found.summary()["robust_accuracy"]["autoattack"]
    assert values[-1] == pytest.approx(float((~lost).float().mean()))


def test_at_full_strength_every_image_moves(
    checkpoints: dict[str, Path], few: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    model = load_model(checkpoints["at"]).model
    x, y = to_float(few.images), few.labels
    ours: dict[str, Tensor] = {}
    quickest: dict[str, Tensor] = {}
    full = autoattack(model, x, y, eps=0.1, mode="represent", ids=few.keys, record=ours)
    autoattack(model, x, y, eps=0.1, mode="evaluate", ids=few.keys, record=quickest)
    size = perturbation_norm(full - x, "linf")
    assert (size > 0.09).all()
    assert (size <= 0.1 + 1e-6).all()
    assert torch.equal(ours["first_success"] >= 0, quickest["first_success"] >= 0)
    assert (ours["loss"] >= quickest["loss"] - 1e-5).all()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes(classes: int) -> None:
    """As many targets as there are wrong classes, and losses that exist."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    x = torch.rand(6, 3, 4, 4)
    y = model(x).argmax(1)
    attacked = autoattack(model, x, y, eps=0.3, version="short", mode="evaluate")
    assert (model(attacked).argmax(1) != y).any()


def test_eps_0_and_no_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    x = torch.rand(3, 3, 4, 4)
    y = torch.tensor([0, 1, 2])
    for mode in ("evaluate", "represent"):
        assert torch.equal(autoattack(model, x, y, eps=0.0, mode=mode), x)
        assert autoattack(model, x[:0], y[:0], eps=0.1, mode=mode).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("change", [lambda x: x * 2 - 1, lambda x: x * 255])
def test_images_that_are_no_pixels(change: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    with pytest.raises(UserError, match=r"pixels in \[0, 1\]"):
        autoattack(model, change(torch.rand(2, 3, 4, 4)), torch.tensor([0, 1]))


def test_versions_by_name() -> None:
    for version in VERSIONS:
        spec = parse_attack(f"autoattack,version={version}", eps=EPS)
        assert spec.params["version"] == version
