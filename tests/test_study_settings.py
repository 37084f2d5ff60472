"""Presets, options over them, and a user's own networks: read right, mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from repsim.cli.train import _plan
from repsim.errors import UserError
from repsim.study.networks import own_networks, preset_networks, training_plan
from repsim.study.settings import PRESETS, Settings, chosen, load_preset, override
from repsim.train import load_recipe

OPTIONS = (
    "scheme", "scenario", "protocol", "phases", "projector", "eps", "norm", "steps", "step_size",
    "restarts", "attack", "attack_mode", "epochs", "batch_size", "lr", "optimizer", "momentum",
    "weight_decay", "schedule", "warmup", "milestones", "average", "augment", "strength_steps",
    "weight_perturbation", "replays", "watch",
)  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_and_come_back_from_json(name: str) -> None:
    settings = load_preset(name)
    assert Settings.from_json(settings.to_json()) == settings
    networks = preset_networks(settings)
    schemes = {(one.scheme, one.scenario) for one in networks}
    assert {(s, c) for s in ("sl", "scl", "cl") for c in ("st", "at")} <= schemes
    assert ("cl", "full-at") in schemes
    assert len({one.eps for one in networks if one.name.startswith("sl-at")}) == 3
    assert any(one.scheme == "untrained" for one in networks)
    assert {one.eps for one in networks if one.scenario == "st"} == {None}
    assert max(one.seed for one in networks) == 1


def test_small_trains_what_the_recipes_train() -> None:
    """A ready checkpoint of `repsim train --recipe` is a network of the study."""
    settings = load_preset("small")
    for one in preset_networks(settings):
        if one.kind is None or not one.kind.recipe or one.init:
            continue
        options = dict.fromkeys(OPTIONS)
        options |= {"head": {}, "seed": one.seed, "compile_": False, "eps": one.kind.eps or None}
        options |= one.kind.encoder
        theirs = _plan("cifar10", load_recipe(one.kind.recipe), None, options)
        assert training_plan(one, settings).to_json() == theirs.to_json()


def test_options_go_over_the_preset() -> None:
    settings = load_preset("demo")
    found = override(settings, [
        "compare.samples=64", "probe.solver=logistic", "evaluate.attacks=pgd;fgsm",
        "probe.options.epochs=3", "encoder.lr=0.05", "margin=0.05",
    ])  # fmt: skip
    assert found.compare.samples == 64
    assert found.probe.solver == "logistic"
    assert found.probe.options == {"epochs": 3}
    assert found.evaluate.attacks == ("pgd", "fgsm")
    assert found.encoder["lr"] == 0.05
    assert found.margin == 0.05
    assert found.kinds == settings.kinds
    only = chosen(settings, ["cl"])
    assert {kind.name for kind in only.kinds} == {"cl-st", "cl-at", "cl-full-at", "untrained"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("compare.sample=3", "there is no setting compare.sample; near: compare.samples"),
        ("compare.samples=many", "compare]: samples expects a whole number; got 'many'"),
        ("compare.samples=-1", "at least 0"),
        ("compare.samples=true", "a whole number; got True"),
        ("probe.adaptive=yes", "true or false; got 'yes'"),
        ("seeds=0", "seeds expects at least 1; got 0"),
        ("compare.samples", "expects KEY=VALUE"),
        ("compare.samples.more=1", "there is no setting compare.samples.more"),
    ],
)
def test_a_wrong_option_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=r".") as raised:
        override(load_preset("demo"), [text])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data = ", "expected TOML"),
        ('data = "digits"\nnetwork = 3', "[[network]] tables"),
        ('data = "digits"\n[[network]]\nrecipe = "cpu-sl-st"', "expected also name"),
        ('data = "digits"\n[[network]]\nname = "a"\nrecipes = "x"', "near: recipe"),
        ('data = "digits"\nseeds = "two"', "seeds expects a whole number; got 'two'"),
        ('seeds = 1\n[[network]]\nname = "a"', "expected also data"),
        ('data = "digits"\n[compare]\nlayer = "leaf"', "there is no setting 'layer'"),
        (
            'data = "digits"\n[[network]]\nname = "a"\nrecipe = "cpu-sl-at"\ninit = "b"',
            "name of another network; got 'b'",
        ),
        ('data = "digits"\n' + '[[network]]\nname = "a"\n' * 2, "a is there twice"),
        ('data = "digits"\n[[network]]\nname = "a"\nrecipe = "cpu-sl"', "--recipe expects"),
        ('data = "digits"\n[[network]]\nname = "a"', "no recipe and the study no model"),
        ('data = "digits"', "at least one [[network]]"),
        (
            'data = "digits"\n[[network]]\nname = "a"\nrecipe = "cpu-sl-st"\n'
            "encoder = { epoch = 3 }",
            "network a-0",
        ),
    ],
)
def test_a_wrong_preset_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r".") as raised:
        preset_networks(load_preset(str(path)))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unknown_preset_and_scheme() -> None:
    with pytest.raises(UserError, match=r"one of demo, small, gpu, paper or a file.*near: small"):
        load_preset("smal")
    with pytest.raises(UserError, match=r"there is no file none\.toml"):
        load_preset("none.toml")
    with pytest.raises(UserError, match="--schemes expects some of cl, scl, sl"):
        chosen(load_preset("demo"), ["sl", "rocl"])


def test_own_networks(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f"[[network]]\nname = 'a'\ncheckpoint = '{checkpoints['st']}'\nscheme = 'sl'\n"
        f"scenario = 'st'\n[[network]]\nname = 'b'\ncheckpoint = '{checkpoints['at']}'\n"
        "scheme = 'sl'\nscenario = 'at'\nseed = 3\n"
    )
    found, also = own_networks(path, tmp_path, load_preset("demo"))
    assert not also
    assert [(one.name, one.scenario, one.seed) for one in found] == [
        ("a", "st", 0), ("b", "at", 3), ("untrained-0", "untrained", 0),
    ]  # fmt: skip
    assert found[1].eps == pytest.approx(0.15)  # from the checkpoint
    assert found[2].arch == "resnet8"
    assert (tmp_path / found[0].checkpoint).samefile(checkpoints["st"])


OWN = "[[network]]\nname = 'a'\ncheckpoint = 'w.pt'\nscheme = 'sl'\nscenario = 'at'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN, "is not of repsim train; add its arch"),
        (OWN + "arch = 'resnet8'\n", "expects eps"),
        (OWN + "arch = 'resnet8'\neps = 'big'\n", "eps expects a number such as 8/255"),
        (OWN.replace("'at'", "'adv'"), "scenario expects one of st, at"),
        (OWN.replace("w.pt", "v.pt"), "checkpoint expects a file; there is no file"),
        (OWN.replace("scheme = 'sl'\n", ""), "expected also scheme"),
        (OWN.replace("'a'", "'a b'"), "name expects letters"),
        (OWN + "seed = 'x'\n", "seed expects a whole number"),
        ("name = 'a'\n", "expected [[network]] tables"),
        ("", "expected [[network]] tables"),
        ("network = 3\n", "expected [[network]] tables"),
        ("preset = true\n", "expected [[network]] tables"),
    ],
)
def test_a_mistake_in_own_networks_is_said_in_one_line(
    tmp_path: Path, text: str, said: str
) -> None:
    import torch

    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r".") as raised:
        own_networks(path, tmp_path, load_preset("demo"))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
