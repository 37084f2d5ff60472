"""Presets, options over them, and a user's own networks: read right, mistakes in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from repsim.checkpoint import read_plain
from repsim.cli.reproduce import reproduce
from repsim.cli.train import _plan
from repsim.errors import UserError
from repsim.study.networks import preset_networks, training_plan
from repsim.study.own import combined, own_networks
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


@pytest.mark.parametrize("name", PRESETS)
def test_budgets_are_reached(name: str) -> None:
    """Steps grow with eps: from the clean image they can go to the edge of every budget."""
    settings = load_preset(name)
    for one in preset_networks(settings):
        attack = training_plan(one, settings).phases[0].attack if one.kind.recipe else None  # type: ignore[union-attr]
        if attack is not None:
            params = attack.params
            assert params["steps"] * params["step_size"] > params["eps"] * 1.2


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
        ('data = "digits"\n[[network]]\nname = "a/b"', "name expects letters, digits and _-.+"),
        ('data = "digits"\n[[network]]\nname = "a (fast)"', "got 'a (fast)'"),
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
        (OWN.replace("'a'", "'untrained-0'"), "kept for the control that the study adds"),
        (OWN.replace("'sl'", "'SL'"), "in lower case other than untrained; got 'SL'; near: sl"),
        (OWN.replace("'sl'", "'untrained'"), "other than untrained; got 'untrained'"),
        (OWN + "mean = 0.5\n", "mean expects a list of numbers, such as [0.5, 0.5, 0.5]; got 0.5"),
        (OWN + "std = ['a']\n", "std expects a list of numbers, such as"),
        ("network = 3\n", "expected [[network]] tables"),
        ("preset = true\n", "expected [[network]] tables"),
    ],
)
def test_a_mistake_in_own_networks_is_said_in_one_line(
    tmp_path: Path, text: str, said: str
) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r".") as raised:
        own_networks(path, tmp_path, load_preset("demo"))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("arch = 'resnet8'\n", "says its arch itself; leave arch out"),
        ("mean = [0.5]\nstd = [0.5]\n", "says its mean itself; leave mean, std out"),
        ("scenario = 'full-at'\n", "scenario says 'full-at'; at.pt was trained as 'at'"),
        ("scheme = 'cl'\n", "scheme says 'cl'; at.pt was trained as 'sl'"),
    ],
)
def test_what_contradicts_a_checkpoint_is_refused(
    tmp_path: Path, checkpoints: dict[str, Path], more: str, said: str
) -> None:
    (tmp_path / "at.pt").write_bytes(checkpoints["at"].read_bytes())
    rows = dict(line.split(" = ", 1) for line in OWN.replace("w.pt", "at.pt").splitlines()[1:])
    rows |= dict(line.split(" = ", 1) for line in more.splitlines())
    path = tmp_path / "mine.toml"
    path.write_text("[[network]]\n" + "".join(f"{k} = {v}\n" for k, v in rows.items()))
    with pytest.raises(UserError, match=said):
        own_networks(path, tmp_path, load_preset("demo"))


def test_two_trainings_are_told_apart_by_their_seeds(
    tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    def networks(more: str, start: str = "") -> list[str]:
        path = tmp_path / "mine.toml"
        one = OWN.replace("w.pt", str(checkpoints["at"]))
        path.write_text(start + one + one.replace("'a'", "'b'") + more)
        settings = load_preset("demo")
        ours, also = own_networks(path, tmp_path, settings)
        preset = preset_networks(replace(settings, model="resnet8")) if also else []
        return [one.name for one in combined(ours, preset)]

    with pytest.raises(UserError, match=r"a and b are both sl/at of seed 0.*give one of them"):
        networks("")
    assert networks("seed = 1\n") == ["a", "b", "untrained-0"]
    with pytest.raises(UserError, match="sl-at-0 and a are both sl/at of seed 0"):
        networks("seed = 1\n", "preset = true\n")
    assert networks("eps = '0.3'\n") == ["a", "b", "untrained-0"]


def test_a_budget_is_a_size_in_linf(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    """An l2 attack of size 0.5 is not a budget of 0.5."""
    kind = (
        'data = "digits"\nmodel = "resnet8"\nseeds = 1\n'
        '[[network]]\nname = "a"\nrecipe = "cpu-sl-at"\n'
        'encoder = { attack = "pgd,norm=l2,eps=0.5" }\n'
    )
    path = tmp_path / "preset.toml"
    path.write_text(kind)
    assert [one.eps for one in preset_networks(load_preset(str(path)))] == [None]
    content = read_plain(checkpoints["at"])
    content["attack"]["params"] |= {"norm": "l2", "eps": 0.5}
    torch.save(content, tmp_path / "w.pt")
    own = tmp_path / "mine.toml"
    own.write_text(OWN)
    assert own_networks(own, tmp_path, load_preset("demo"))[0][0].eps is None
    torch.save(content["state_dict"], tmp_path / "w.pt")
    own.write_text(OWN + "arch = 'resnet8'\neps = 'none'\n")
    assert own_networks(own, tmp_path, load_preset("demo"))[0][0].eps is None


@pytest.mark.parametrize("name", PRESETS)
def test_how_long_a_preset_takes_is_said_alike_everywhere(name: str) -> None:
    """In the preset itself, in the README and in --help."""
    words = load_preset(name).about.rpartition(": ")[2]
    assert words
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8").splitlines()
    row = next(line for line in readme if line.startswith(f"| `{name}` |"))
    assert row.endswith(f"| {words} |")
    helped = next(one.help for one in reproduce.params if one.name == "preset")  # type: ignore[attr-defined]
    said = {part.partition(":")[0].strip(): part for part in helped.split(";")}
    assert said[name].endswith(words)


def test_the_readmes_networks_are_read(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    """The example of --models, with files in the places that it names."""
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    text = readme.partition("```toml\npreset = true")[2].partition("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/st.pt").write_bytes(checkpoints["st"].read_bytes())
    torch.save({"w": torch.zeros(2)}, tmp_path / "runs/robust.pth")
    (tmp_path / "mine.toml").write_text(f"preset = true{text}")
    found, also = own_networks(tmp_path / "mine.toml", tmp_path, load_preset("small"))
    assert also
    assert [(one.scheme, one.scenario, one.seed) for one in found] == [
        ("sl", "st", 2), ("trades", "at", 0),
    ]  # fmt: skip
    assert len(combined(found, preset_networks(load_preset("small")))) == 20
