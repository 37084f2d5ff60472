"""Attacks as typed: every form, every mistake, plug-ins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repsim.attacks import (
    AttackSpec,
    parse_attack,
    parse_attacks,
    parse_number,
    run_attack,
)
from repsim.attacks.table import PRESETS
from repsim.errors import UserError

EPS = 8 / 255
X = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def run(spec: AttackSpec, model: nn.Module, **options: object) -> Tensor:
    return run_attack(spec, model, X, Y, ids=torch.arange(4), seed=0, **options)  # type: ignore[arg-type]


# --- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255), ("0.03", 0.03), (".5", 0.5), ("2", 2.0), ("1e-3", 1e-3),
        ("1.5/255", 1.5 / 255), (" 8 / 255 ", 8 / 255), ("1.25eps", 0.125), ("1.25*eps", 0.125),
        ("eps", 0.1), ("1/4eps", 0.025), ("-0.1", -0.1),
    ],
)  # fmt: skip
def test_numbers(text: str, value: float) -> None:
    assert parse_number(text, what="step_size", eps=0.1) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text", ["", "x", "1/0", "1/2/3", "8/", "/255", "nan", "inf", "1e999", "2epsi", "1_0", "1,5"]
)
def test_no_numbers(text: str) -> None:
    with pytest.raises(UserError, match=r"eps expects a number such as 8/255 or 0\.03; got"):
        parse_number(text, what="eps", eps=0.1)


def test_eps_units_are_only_for_settings_relative_to_an_eps() -> None:
    with pytest.raises(UserError, match="got '2eps'"):
        parse_attack("pgd,eps=2eps", eps=EPS)


# --- every form ------------------------------------------------------------------------------


def test_a_name_alone_takes_the_eps_of_the_data_and_the_defaults() -> None:
    spec = parse_attack("pgd", eps=EPS)
    assert (spec.name, spec.condition, spec.norm) == ("pgd", "pgd", "linf")
    assert spec.params == {
        "eps": EPS, "eot": 1, "loss": "ce", "norm": "linf", "restarts": 1, "start": "random",
        "step_size": None, "steps": 20,
    }  # fmt: skip
    assert spec.text == "pgd,eps=8/255"
    assert not spec.is_control
    assert parse_attack("noise", eps=0.3).is_control


def test_settings() -> None:
    spec = parse_attack(
        "pgd, norm=l2, eps=0.5, steps=7, step_size=1.25eps, start=clean, as=pgd-l2", eps=EPS
    )
    assert spec.condition == "pgd-l2"
    assert spec.norm == "l2"
    assert spec.params == {
        "eps": 0.5, "eot": 1, "loss": "ce", "norm": "l2", "restarts": 1, "start": "clean",
        "step_size": 0.625, "steps": 7,
    }  # fmt: skip
    assert parse_attack("fgsm,eps=0.03", eps=EPS).params == {"eps": 0.03, "norm": "linf"}
    assert parse_attack("noise,eps=4/255", eps=EPS).params["eps"] == 4 / 255


def test_two_spellings_of_one_attack_are_equal() -> None:
    a = parse_attack("pgd", eps=EPS)
    b = parse_attack("pgd,steps=20,norm=linf,restarts=1,eps=8/255", eps=0.3)
    assert a == b
    assert a.to_json() == b.to_json()
    assert list(a.params) == list(b.params)
    assert a != parse_attack("pgd,steps=21", eps=EPS)


def test_json_is_plain_and_complete() -> None:
    content = parse_attack("pgd,as=strong,restarts=3", eps=EPS).to_json()
    assert json.loads(json.dumps(content)) == content
    assert content["name"] == "pgd"
    assert content["condition"] == "strong"
    assert content["params"]["steps"] == 20
    assert content["control"] is False


def test_options_are_defaults_for_the_attacks_that_take_them() -> None:
    options = {"steps": "50", "eps": "4/255", "restarts": "2"}
    pgd = parse_attack("pgd,steps=5", eps=EPS, defaults=options)
    assert (pgd.params["steps"], pgd.params["restarts"], pgd.params["eps"]) == (5, 2, 4 / 255)
    assert parse_attack("fgsm", eps=EPS, defaults=options).params == {
        "eps": 4 / 255,
        "norm": "linf",
    }


def test_an_eps_belongs_to_the_norm_it_was_given_with() -> None:
    for text, defaults in (
        ("pgd,norm=l2", {}),
        ("pgd,norm=l2", {"eps": "4/255"}),
        ("pgd", {"norm": "l2"}),
        ("noise,norm=l2", {"norm": "linf", "eps": "4/255"}),
    ):
        with pytest.raises(UserError, match=r"norm l2 expects an eps of its own; try .*eps=0.5"):
            parse_attack(text, eps=EPS, defaults=defaults)
    l2 = {"norm": "l2", "eps": "0.5"}
    assert parse_attack("fgsm", eps=EPS, defaults=l2).params == {"eps": 0.5, "norm": "l2"}
    assert parse_attack("fgsm,norm=l2", eps=EPS, defaults=l2).params["eps"] == 0.5
    linf = parse_attack("fgsm,norm=linf,as=linf", eps=EPS, defaults=l2)
    assert linf.params == {"eps": EPS, "norm": "linf"}


@given(
    st.sampled_from(["fgsm", "pgd", "mim", "apgd", "square", "fab", "autoattack", "noise"]),
    st.sampled_from(["linf", "l2", "l1"]),
    st.floats(0, 1) | st.integers(0, 255).map(lambda n: n / 255) | st.sampled_from([0.1, 0.15]),
    st.integers(1, 500),
    st.floats(1e-6, 1) | st.none(),
    st.from_regex(r"[a-z][\w.@+-]{0,8}", fullmatch=True) | st.none(),
)
@settings(max_examples=150, deadline=None)
def test_text_is_read_back_as_the_same_attack(
    name: str, norm: str, eps: float, steps: int, step_size: float | None, condition: str | None
) -> None:
    text = f"{name},norm={norm},eps={eps!r}"
    if name == "pgd":
        text += f",steps={steps}" + (f",step_size={step_size!r}" if step_size else "")
    if condition not in (None, "clean", "adv", "worst", "noise"):
        text += f",as={condition}"
    spec = parse_attack(text, eps=0.7)
    assert spec.params["eps"] == eps
    again = parse_attack(spec.text, eps=0.3)
    assert again == spec
    assert again.text == spec.text


@pytest.mark.parametrize(
    ("eps", "shown"),
    [("8/255", "8/255"), ("0.5", "0.5"), ("0.2", "0.2"), ("1", "1"), ("0", "0"),
     ("1.25/255", "0.004901960784313725"), ("0.1234567890123", "0.1234567890123")],
)  # fmt: skip
def test_text_shows_eps_as_one_would_type_it(eps: str, shown: str) -> None:
    assert parse_attack(f"fgsm,eps={eps}", eps=EPS).text == f"fgsm,eps={shown}"


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg", r"expects one of apgd, .*unseen or module:object.*got 'pdg'; near: pgd"),
        ("", "expects one of apgd"),
        ("pgd,step=3", r"pgd takes eot, eps, loss, norm, .*; got 'step'; near: steps"),
        ("fgsm,steps=3", r"fgsm takes eps, norm; got 'steps'"),
        ("pgd,ids=3", "got 'ids'"),
        ("pgd,model=3", "got 'model'"),
        ("pgd,steps", r"expected key=value after the name; got 'steps'"),
        ("pgd,steps=", "expected key=value"),
        ("pgd,", "expected key=value"),
        ("pgd,eps=0.1,eps=0.2", "expected eps once"),
        ("pgd,steps=2.5", "steps expects a whole number; got '2.5'"),
        ("pgd,steps=0", "at least 1; got 0"),
        ("pgd,restarts=-1", "at least 1"),
        ("pgd,restarts=2,start=clean", "random starts"),
        ("pgd,start=zero", "got 'zero'"),
        ("pgd,step_size=fast", "step_size expects a number"),
        ("pgd,step_size=-1/255", "step_size expects a number above 0"),
        ("pgd,step_size=2", "step_size .* try 2/255"),
        ("pgd,eps=8", r"looks like 0-255 units; try 8/255"),
        ("noise,eps=8", "try 8/255"),
        ("fgsm,eps=-8/255", "at least 0"),
        ("pgd,eps=x", "eps expects a number"),
        ("pgd,norm=l0,eps=1", "norm expects one of linf, l2, l1; got 'l0'"),
        ("pgd,norm=l1", "norm l1 expects an eps of its own; try pgd,norm=l1,eps=12"),
        ("pgd,loss=hinge", "loss expects one of ce, dlr, margin, unit-ce, kl; got 'hinge'"),
        ("pgd,eot=0", "eot expect at least 1"),
        ("mim,steps=0", "at least 1"),
        (
            "apgd,loss=dlr-targetted",
            "loss expects one of ce, dlr, margin, unit-ce, kl, dlr-targeted; got",
        ),
        ("apgd-t,targets=0", "targets expects at least 1; got 0"),
        ("square,queries=0", "queries expects at least 1; got 0"),
        ("square,p_init=0", "p_init expects a number above 0"),
        ("noise,kind=gauss", "kind expects one of sign, uniform; got 'gauss'"),
        ("feature,distance=l3", "distance expects one of .*; got 'l3'"),
        ("feature,towards=up", "towards expects one of away, other; got 'up'"),
        ("contrastive,temperature=-1", "temperature expects a number above 0"),
        ("mim,loss=kl", "loss kl expects start=random: .*try mim,loss=kl,start=random"),
        ("autoattack,version=best", "version expects one of standard, plus, rand, short"),
        ("deepfool,norm=l1", "deepfool expects norm l2 or linf; got 'l1'"),
        ("probe,layer=layer1", "probe expects the probe's file: .*weights=FILE"),
        ("pgd,as=clean", "other than clean, adv"),
        ("pgd,as=adv", "other than clean, adv"),
        ("pgd,as=worst", "worst"),
        ("pgd,as=noise", "noise"),
        ("pgd,as=a:b", "got 'a:b'"),
        ("pgd,as=a/b", "got 'a/b'"),
        ("pgd,as=.", "got '.'"),
        ("nowhere.py:attack", "there is no file nowhere.py"),
        ("no_such_module:attack", "importing no_such_module failed.*path/to/file.py:object"),
        ("math:sqroot", "math has no 'sqroot'; near: .*sqrt"),
        ("math:pi", "expected a function .model, inputs, labels"),
        ("math:sqrt", "expected a function .model, inputs, labels"),
    ],
)
def test_mistakes_name_what_was_expected_what_came_and_what_is_near(
    text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_attack(text, eps=EPS)
    assert "\n" not in str(caught.value)


# --- presets, groups, files ------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_the_attack_that_it_stands_for(name: str) -> None:
    spec = parse_attack(name, eps=EPS)
    assert spec == parse_attack(f"{PRESETS[name]},as={name}", eps=EPS)
    assert parse_attack(spec.text, eps=0.3) == spec


def test_settings_after_a_preset_replace_its_own() -> None:
    assert parse_attack("l2-0.5,steps=50", eps=EPS).params["steps"] == 50
    for text in ("l2-0.5,eps=1", "linf-16,norm=l2", "unseen,norm=l2"):
        with pytest.raises(UserError, match="has its own eps and norm"):
            parse_attacks(text, eps=EPS)
    with pytest.raises(UserError, match="as= expects one attack; unseen is several"):
        parse_attacks("unseen,as=x", eps=EPS)
    assert parse_attack("apgd-t,targets=3", eps=EPS).params["loss"] == "dlr-targeted"


def test_unseen_threats_are_those_of_the_table() -> None:
    """RoCL's table 1: linf 16/255, l2 0.25 and 0.5, l1 7.84 and 12."""
    found = parse_attacks("unseen,steps=7", eps=EPS, defaults={"eps": "4/255"})
    assert [(s.norm, s.params["eps"]) for s in found] == [
        ("linf", 16 / 255), ("l2", 0.25), ("l2", 0.5), ("l1", 7.84), ("l1", 12.0)
    ]  # fmt: skip
    assert {s.params["steps"] for s in found} == {7}
    assert len({s.condition for s in found}) == 5
    assert len(parse_attacks("pgd", eps=EPS)) == 1


def test_a_size_given_for_one_norm_is_none_in_another() -> None:
    l2 = {"norm": "l2", "eps": "0.5", "step_size": "0.1"}
    found = parse_attacks("unseen", eps=EPS, defaults=l2)
    assert [(s.norm, s.params["eps"], s.params["step_size"]) for s in found] == [
        ("linf", 16 / 255, None), ("l2", 0.25, 0.1), ("l2", 0.5, 0.1), ("l1", 7.84, None),
        ("l1", 12.0, None),
    ]  # fmt: skip
    assert parse_attack("r-fgsm", eps=EPS, defaults=l2).params["eps"] == EPS  # it is linf only
    assert parse_attack("deepfool", eps=EPS, defaults=l2).params["eps"] == 0.5
    linf = {"eps": "4/255", "steps": "7", "step_size": "2/255"}
    assert parse_attack("deepfool", eps=EPS, defaults=linf).params["eps"] is None
    cw = parse_attack("cw-l2", eps=EPS, defaults=linf).params
    assert (cw["eps"], cw["steps"], cw["step_size"]) == (None, 1000, 0.01)
    relative = {"step_size": "0.5eps"}
    assert parse_attack("l1-12", eps=EPS, defaults=relative).params["step_size"] == 6


def test_attacks_of_the_smallest_norm_need_no_eps() -> None:
    for name in ("cw-l2", "deepfool"):
        spec = parse_attack(name, eps=EPS)
        assert spec.params["eps"] is None
        assert "eps" not in spec.text
        assert parse_attack(spec.text, eps=EPS) == spec
        assert parse_attack(f"{name},eps=0.5", eps=EPS).params["eps"] == 0.5
    free = parse_attack("fab,eps=none", eps=EPS)
    assert free.params["eps"] is None
    assert free.text == "fab,eps=none"
    assert parse_attack(free.text, eps=EPS) == free
    with pytest.raises(UserError, match="eps expects a number"):
        parse_attack("pgd,eps=none", eps=EPS)


def test_files_are_not_read_before_they_are_bound(net: nn.Module) -> None:
    spec = parse_attack("pgd,surrogate=other.pt", eps=EPS)
    assert spec.files == {"surrogate": "other.pt"}
    assert spec.text == "pgd,eps=8/255,surrogate=other.pt"
    assert spec != parse_attack("pgd", eps=EPS)
    with pytest.raises(UserError, match="names files that were not read"):
        run(spec, net)


@pytest.mark.parametrize("name", ["pgd", "apgd", "mine"])
def test_unfooled_images_stay_clean_where_asked(name: str, net: nn.Module, tmp_path: Path) -> None:
    if name == "mine":
        (tmp_path / "m.py").write_text(
            "def mine(model, inputs, labels):\n    return (inputs + 0.1).clamp(0, 1)\n"
        )
        name = f"{tmp_path}/m.py:mine"
    plain, kept = (parse_attack(name + more, eps=0.01) for more in ("", ",only_fooled=true"))
    assert plain != kept
    assert parse_attack(kept.text, eps=EPS) == kept
    assert kept.to_json()["only_fooled"] is True
    with torch.no_grad():
        y = net(X).argmax(1)
        y[0] = (y[0] + 1) % 3  # fooled for certain
        attacked, found = run_attack_on(plain, net, y), run_attack_on(kept, net, y)
        fooled = net(attacked).argmax(1) != y
    assert 0 < fooled.sum() < 4
    assert torch.equal(found[fooled], attacked[fooled])
    assert torch.equal(found[~fooled], X[~fooled])
    with pytest.raises(UserError, match="only_fooled expects true or false"):
        parse_attack("pgd,only_fooled=1", eps=EPS)


def test_an_attack_may_run_in_another_precision_than_the_rest(net: nn.Module) -> None:
    """The steps round otherwise, the verdict of only_fooled does not."""
    plain = parse_attack("pgd", eps=EPS)
    half, full = (parse_attack(f"pgd,precision={p}", eps=EPS) for p in ("bf16", "float32"))
    assert parse_attack(half.text, eps=EPS) == half != plain
    assert half.to_json()["precision"] == "bf16"
    assert "precision" not in plain.to_json()
    y = net(X).argmax(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run_attack_on(full, net, y), run_attack_on(full, net, y))
        rounded = run_attack_on(plain, net, y)
        exact = run_attack_on(full, net, y)
    assert torch.equal(exact, run_attack_on(plain, net, y))
    assert torch.equal(rounded, run_attack_on(half, net, y))
    with pytest.raises(UserError, match="precision expects one of float32, bf16; got 'half'"):
        parse_attack("pgd,precision=half", eps=EPS)


def run_attack_on(spec: AttackSpec, net: nn.Module, y: Tensor) -> Tensor:
    return run_attack(spec, net, X, y, ids=torch.arange(4), seed=0)


# --- plug-ins --------------------------------------------------------------------------------

FIVE_LINES = """
import torch
def brighten(model, inputs, labels, *, eps, power=1):
    logits = model(inputs.requires_grad_(True))
    gradient, = torch.autograd.grad(logits[range(len(labels)), labels].sum(), inputs)
    return (inputs - power * eps * gradient.sign()).clamp(0, 1)
"""


def plugin(tmp_path: Path, source: str, name: str = "attack") -> str:
    path = tmp_path / "mine.py"
    path.write_text(source)
    return f"{path}:{name}"


def test_five_lines_of_ones_own(tmp_path: Path, net: nn.Module) -> None:
    name = plugin(tmp_path, FIVE_LINES, "brighten")
    spec = parse_attack(f"{name},power=2", eps=0.1)
    assert (spec.condition, spec.norm) == ("brighten", "linf")
    assert spec.params == {"eps": 0.1, "power": 2}
    assert not spec.is_control
    net.train()
    with torch.no_grad():  # as the caller may be
        found = run(spec, net, record={})
    weight = net[1].weight.detach()  # type: ignore[index]
    wanted = (X - 0.2 * weight[Y].view_as(X).sign()).clamp(0, 1)
    torch.testing.assert_close(found, wanted)
    assert not found.requires_grad
    assert not X.requires_grad  # the attack had a copy
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert parse_attack(spec.text, eps=0.3) == spec


def test_a_plugin_is_handed_what_its_signature_has(tmp_path: Path, net: nn.Module) -> None:
    source = """
def attack(model, inputs, labels, *, eps, ids, seed, mode, record, train_mode=False):
    record["loss"] = ids.float() + seed
    record["seen"] = (mode, model.training, train_mode)
    return inputs
"""
    spec = parse_attack(plugin(tmp_path, source), eps=0.1)
    assert spec.params == {"eps": 0.1}
    record: dict[str, Tensor] = {}
    ids = torch.tensor([3, 1, 4, 1])
    net.train()
    for train_mode in (False, True):
        found = run_attack(
            spec, net, X, Y, ids=ids, seed=10, mode="last", train_mode=train_mode, record=record
        )
        assert record["loss"].tolist() == [13, 11, 14, 11]
        assert record["seen"] == ("last", train_mode, train_mode)
        assert torch.equal(found, X)


def test_settings_of_a_plugin_take_the_type_of_their_defaults(tmp_path: Path) -> None:
    source = """
def attack(model, inputs, labels, steps, eps=0.1, *, alpha=0.5, fast=False, how="x", more=None,
           shape=(1, 2)):
    return inputs
def anything(model, inputs, labels, **settings):
    return inputs
def l2(model, inputs, labels, *, eps=2.0, norm="l2"):
    return inputs
def own(model, inputs, labels, *, size, norm="wasserstein"):
    return inputs
"""
    name = plugin(tmp_path, source)
    with pytest.raises(UserError, match="also expects steps; add ,KEY=VALUE"):
        parse_attack(name, eps=0.3)
    spec = parse_attack(f"{name},steps=3,alpha=2eps,fast=true,how=abc,more=1/4", eps=0.3)
    assert spec.params == {
        "eps": 0.3, "alpha": 0.6, "fast": True, "how": "abc", "more": 0.25, "steps": 3,
    }  # fmt: skip
    assert isinstance(spec.params["steps"], int)
    assert parse_attack(spec.text, eps=0.1) == spec
    with pytest.raises(UserError, match="fast expects true or false; got 'maybe'"):
        parse_attack(f"{name},steps=3,fast=maybe", eps=0.3)

    spec = parse_attack(
        f"{name.replace(':attack', ':anything')},a=3,b=2.5,c=text", eps=0.3,
        defaults={"norm": "linf"},
    )  # fmt: skip
    assert spec.params == {"eps": 0.3, "a": 3, "b": 2.5, "c": "text", "norm": "linf"}
    assert parse_attack(spec.text, eps=0.1) == spec

    l2 = name.replace(":attack", ":l2")
    assert parse_attack(l2, eps=0.3).params == {"eps": 2.0, "norm": "l2"}  # not a linf eps
    assert parse_attack(f"{l2},norm=linf", eps=0.3).params == {"eps": 0.3, "norm": "linf"}

    own = parse_attack(name.replace(":attack", ":own") + ",size=3", eps=0.3)
    assert own.norm == "wasserstein"
    assert "eps" not in own.params


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return inputs[:, :, :2]",
            r"expected to return images of shape \(4, 1, 4, 4\); got \(4, 1",
        ),
        ("return inputs[:2]", "expected to return images of shape"),
        ("return None", "expected to return images .* got .*NoneType"),
        ("return inputs, labels", "expected to return images .* got .*tuple"),
        ("return inputs + 0.5", r"expected to return images in \[0, 1\]; clip"),
        ("return inputs - 0.5", r"expected to return images in \[0, 1\]"),
        ("return inputs * float('nan')", r"expected to return images in \[0, 1\]"),
    ],
)
def test_what_a_plugin_returns_is_checked(
    body: str, message: str, tmp_path: Path, net: nn.Module
) -> None:
    source = f"def attack(model, inputs, labels):\n    {body}\n"
    with pytest.raises(UserError, match=message):
        run(parse_attack(plugin(tmp_path, source), eps=0.1), net)


def test_a_plugin_working_in_place_leaves_the_clean_images_clean(
    tmp_path: Path, net: nn.Module
) -> None:
    kept = X.clone()
    source = "def attack(model, inputs, labels):\n    return inputs.mul_(0.5)\n"
    found = run(parse_attack(plugin(tmp_path, source), eps=0.1), net)
    assert torch.equal(X, kept)
    torch.testing.assert_close(found, kept / 2)


def test_a_plugin_in_double_comes_back_in_the_dtype_of_the_images(
    tmp_path: Path, net: nn.Module
) -> None:
    source = "def attack(model, inputs, labels):\n    return inputs.double()\n"
    assert run(parse_attack(plugin(tmp_path, source), eps=0.1), net).dtype == X.dtype


def test_images_are_checked_for_plugins_too(tmp_path: Path, net: nn.Module) -> None:
    spec = parse_attack(plugin(tmp_path, "def attack(model, inputs, labels): return inputs"), eps=0)
    with pytest.raises(UserError, match="pixels in"):
        run_attack(spec, net, X * 255, Y, ids=torch.arange(4), seed=0)
