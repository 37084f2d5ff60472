from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from repsim.errors import UserError
from repsim.hooks import Layer, capture, head_name, select_layers, trace, unwrap
from repsim.models import Normalized, build_model

X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def names(model: nn.Module, layers: str | list[str] = "blocks", x: Tensor = X) -> list[str]:
    return [layer.name for layer in select_layers(model, x, layers).layers]


def captured(model: nn.Module, wanted: list[str], x: Tensor = X) -> dict[str, Tensor]:
    with torch.no_grad(), capture(model, wanted) as found:
        model(x)
    return dict(found)


class Residual(nn.Module):
    """A block as torchvision writes them: one ReLU used twice; in place if asked for."""

    def __init__(self, inputs: int, width: int, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.downsample = nn.Conv2d(inputs, width, 1) if inputs != width else None
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.bn1(self.conv1(x))))
        skip = x if self.downsample is None else self.downsample(x)
        if self.inplace:
            out += skip
        else:
            out = out + skip
        return self.relu(out)


class ResidualNet(nn.Module):
    def __init__(self, inplace: bool = False, widths: tuple[int, ...] = (4, 4, 6)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        stages = [nn.Sequential(Residual(a, b, inplace)) for a, b in pairwise(widths)]
        self.stages = nn.Sequential(*stages)
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(self.relu(self.conv1(x))).mean((2, 3)))


# --- names and order


def test_layers_are_the_modules_in_the_order_of_their_outputs() -> None:
    model = build_model("resnet8", classes=10)
    block = ("conv1", "bn1", "relu1", "conv2", "bn2", "shortcut", "relu2")
    want = ["conv1", "bn1", "relu"]
    for i in (1, 2, 3):
        # An identity shortcut is no module: it would repeat the block's input.
        parts = [part for part in block if i > 1 or part != "shortcut"]
        want += [f"layer{i}.0.{part}" for part in parts] + [f"layer{i}.0", f"layer{i}"]
    want += ["avgpool"]
    found = trace(model, X)
    assert [layer.name for layer in found] == want
    assert set(want) == {n for n, _ in model.named_modules()} - {"", "linear"}
    by_name = {layer.name: layer for layer in found}
    assert by_name["layer2.0"] == Layer("layer2.0", (32, 4, 4), "BasicBlock", False)
    assert by_name["layer2.0.conv2"] == Layer("layer2.0.conv2", (32, 4, 4), "Conv2d", True)
    assert names(model, "leaf") == [layer.name for layer in found if layer.leaf]
    assert names(model, "blocks") == ["relu", "layer1.0", "layer2.0", "layer3.0", "avgpool"]


def test_torchvision_s_resnet50() -> None:
    model = torchvision.models.resnet50(num_classes=10)
    # stem 4, layers 4, avgpool 1; a bottleneck is itself, 3 convolutions, 3 norms and one ReLU
    # called three times; four downsamples of a Sequential and two modules.
    assert len(names(model, "all")) == 4 + 4 + 1 + 16 * (1 + 3 + 3 + 3) + 4 * 3
    assert len(names(model, "leaf")) == 4 + 1 + 16 * 9 + 4 * 2
    assert names(model, "layer1.0.relu*") == [f"layer1.0.relu{k}" for k in ("", "@2", "@3")]
    depths = [3, 4, 6, 3]
    blocks = [f"layer{i + 1}.{j}" for i in range(4) for j in range(depths[i])]
    assert names(model) == ["maxpool", *blocks, "avgpool"]


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_what_is_found_does_not_depend_on_the_batch(batch: int) -> None:
    model = ResidualNet()
    assert trace(model, torch.rand(batch, 3, 8, 8)) == trace(model, X)


def test_a_module_that_runs_twice_or_never() -> None:
    model = ResidualNet()
    every = names(model, "all")
    assert "unused" not in every
    assert every.index("stages.0.0.relu") < every.index("stages.0.0.conv2")
    assert every.index("stages.0.0.conv2") < every.index("stages.0.0.relu@2")
    assert [n for n in every if "relu@" in n] == ["stages.0.0.relu@2", "stages.1.0.relu@2"]
    found = captured(model, ["stages.0.0.relu@2", "stages.0.0.relu", "stages.0.0"])
    assert list(found) == ["stages.0.0.relu", "stages.0.0.relu@2", "stages.0.0"]
    assert torch.equal(found["stages.0.0.relu@2"], found["stages.0.0"])
    assert not torch.equal(found["stages.0.0.relu@2"], found["stages.0.0.relu"])
    with pytest.raises(UserError, match=r"unused did not run in this forward"):
        captured(model, ["relu", "unused"])
    with pytest.raises(UserError, match=r"relu@3 did not run"):
        captured(model, ["stages.0.0.relu@3"])


def test_a_module_registered_twice_has_its_first_name() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3), b=relu, c=nn.Flatten(), d=relu))
    assert names(model, "all") == ["a", "b", "c", "b@2"]


# --- values


@pytest.mark.parametrize("channels_last", [False, True])
def test_captured_values_are_those_of_a_network_without_in_place_operations(
    channels_last: bool,
) -> None:
    plain, inplace = ResidualNet(False).eval(), ResidualNet(True)
    inplace.load_state_dict(plain.state_dict())
    x = X
    if channels_last:
        inplace = inplace.to(memory_format=torch.channels_last)
        x = X.contiguous(memory_format=torch.channels_last)
    every = names(inplace, "all", x)
    found = captured(inplace, every, x)
    assert list(found) == every

    # The reference is written out, it uses no hooks.
    with torch.no_grad():
        want = {"conv1": plain.conv1(X)}
        h = want["relu"] = want["conv1"].relu()
        for i in (0, 1):
            block, p = plain.stages[i][0], f"stages.{i}.0"
            want[f"{p}.conv1"] = block.conv1(h)
            want[f"{p}.bn1"] = block.bn1(want[f"{p}.conv1"])
            want[f"{p}.relu"] = want[f"{p}.bn1"].relu()
            want[f"{p}.conv2"] = block.conv2(want[f"{p}.relu"])
            if block.downsample is not None:
                h = want[f"{p}.downsample"] = block.downsample(h)
            h = (want[f"{p}.conv2"] + h).relu()
            want |= {f"{p}.relu@2": h, p: h, f"stages.{i}": h}
        want["stages"] = h
    assert list(want) == every
    for name, value in want.items():
        torch.testing.assert_close(found[name].contiguous(), value, msg=name)
    if not channels_last:
        assert all(torch.equal(found[name], value) for name, value in want.items())


def chain(parts: list[object], width: int = 6) -> nn.Sequential:
    """A nested Sequential; `parts` says what it is made of."""
    made: list[nn.Module] = []
    for part in parts:
        if isinstance(part, list):
            made.append(chain(part))
        else:
            made.append(nn.Linear(width, width) if part == "linear" else nn.ReLU(part == "relu_"))
    return nn.Sequential(*made)


PARTS = st.recursive(
    st.sampled_from(["linear", "relu", "relu_"]), lambda x: st.lists(x, max_size=4), max_leaves=8
).filter(lambda x: isinstance(x, list))


@settings(max_examples=40, deadline=None)
@given(parts=PARTS, seed=st.integers(0, 100))
def test_any_nested_chain_is_captured_as_a_walk_through_it_computes(
    parts: list[object], seed: int
) -> None:
    torch.manual_seed(seed)
    # Six outputs against four logits: no module of the chain can be taken for the head.
    model = nn.Sequential(chain(parts), nn.Linear(6, 4))
    x = torch.randn(3, 6)
    want: dict[str, Tensor] = {}

    def walk(module: nn.Module, name: str, value: Tensor) -> Tensor:
        if isinstance(module, nn.Sequential):
            for child, inner in module.named_children():
                value = walk(inner, f"{name}.{child}", value)
        else:
            value = module(value.clone())
        want[name] = value.clone()
        return value

    with torch.no_grad():
        walk(model[0], "0", x.clone())
    every = names(model, "all", x)
    assert every == list(want)
    found = captured(model, every, x.clone())
    assert all(torch.equal(found[name], want[name]) for name in every)


def test_every_forward_refills_and_leaves_what_was_taken_before() -> None:
    model = ResidualNet(True)
    with torch.no_grad(), capture(model, ["relu"]) as found:
        model(X)
        first = found["relu"]
        kept = first.clone()
        model(X[:1] * 2)
        assert found["relu"].shape == (1, 4, 8, 8)
    assert torch.equal(first, kept)
    model(X)
    assert found["relu"].shape == (1, 4, 8, 8)  # outside, nothing is captured


def test_transform_is_called_at_once_and_only_views_are_copied() -> None:
    model = ResidualNet(True)
    made: dict[str, Tensor] = {}

    def transform(name: str, output: Tensor) -> Tensor:
        assert not output.requires_grad
        assert not torch.is_grad_enabled()
        made[name] = output.flatten(1) if name == "conv1" else output.mean((2, 3))
        return made[name]

    with capture(model, ["conv1", "relu"], transform) as found:
        model(X.clone().requires_grad_())
    plain = captured(model, ["conv1", "relu"])
    assert found["relu"] is made["relu"]  # reduced by the transform: no second copy
    assert torch.equal(found["relu"], plain["relu"].mean((2, 3)))
    assert found["conv1"] is not made["conv1"]
    assert torch.equal(found["conv1"], plain["conv1"].flatten(1))
    assert (found["conv1"] < 0).any()
    assert not (made["conv1"] < 0).any()  # the in-place ReLU did change what was not copied


class Outputs(nn.Module):
    """Modules whose outputs are not simply (batch, ...) tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Returns(lambda x: (x + 1, x + 2))
        self.nested = Returns(lambda x: [{"none": None, "deep": (x + 3,)}, x])
        self.nothing = Returns(lambda x: {"text": "no tensor"})
        self.integers = Returns(lambda x: x.argmax(1))
        self.tokens_first = Returns(lambda x: x.transpose(0, 1))
        self.scalar = Returns(lambda x: x.sum())
        self.rows = Returns(lambda x: x.sum((1, 2, 3)))
        self.fc = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        for module in list(self.children())[2:-1]:
            module(x)
        x = self.nested(self.pair(x)[0])[0]["deep"][0]
        return {"loss": None, "logits": self.fc(x.flatten(1))}


class Returns(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def test_of_a_tuple_list_or_dict_the_first_tensor_counts() -> None:
    model = Outputs()
    assert names(model, "all") == ["pair", "nested"]
    found = captured(model, ["pair", "nested", "fc"])
    assert torch.equal(found["pair"], X + 1)
    assert torch.equal(found["nested"], X + 1 + 3)
    assert found["fc"].shape == (3, 10)
    assert head_name(model, X) == "fc"
    for name, what in {
        "nothing": "got no tensor",
        "integers": r"got torch.int64",
        "tokens_first": r"got torch.float32 \(3, 3, 8, 8\)",
        "scalar": r"got torch.float32 \(\)",
    }.items():
        if name != "tokens_first":  # three channels, three images: only the trace can tell
            with pytest.raises(UserError, match=what):
                captured(model, [name])
        with pytest.raises(UserError, match=rf"gives no \(batch, ...\) tensor \({name}\)"):
            select_layers(model, X, name)


# --- the model's state


def state(model: nn.Module) -> list[object]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    flags = [(p.requires_grad, p.grad is None or p.grad.clone()) for p in model.parameters()]
    return [hooks, modes, flags, torch.backends.mha.get_fastpath_enabled()]


def unusual(model: nn.Module) -> nn.Module:
    """Half in eval mode, half frozen, with some gradients."""
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    return model


def same_state(before: list[object], after: list[object]) -> bool:
    flags = zip(before[2], after[2], strict=True)  # type: ignore[call-overload]
    equal = all(
        a[0] == b[0] and (a[1] is b[1] is True or torch.equal(a[1], b[1])) for a, b in flags
    )
    return equal and before[:2] + before[3:] == after[:2] + after[3:]


def test_state_is_restored_and_gradients_reach_the_input() -> None:
    model = unusual(ResidualNet(True))
    before, buffers = state(model), copy.deepcopy(list(model.buffers()))
    trace(model, X)
    x = X.clone().requires_grad_()
    with capture(model, ["conv1", "stages"]) as found:
        assert not any(module.training for module in model.modules())
        model(x).sum().backward()
        assert not any(value.requires_grad for value in found.values())
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert same_state(before, state(model))
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


@pytest.mark.parametrize("use", ["trace", "select", "capture", "transform", "body"])
def test_state_is_restored_when_something_raises(use: str) -> None:
    model = unusual(ResidualNet())
    model.stages[1][0].conv2 = nn.Conv2d(7, 7, 1)  # does not fit
    before = state(model)

    def failing(name: str, output: Tensor) -> Tensor:
        raise ZeroDivisionError

    def run() -> None:
        if use == "trace":
            trace(model, X)
        elif use == "select":
            select_layers(model, X)
        else:
            with capture(model, ["relu"], failing if use == "transform" else None):
                if use == "body":
                    raise ZeroDivisionError
                model(X)

    with pytest.raises((RuntimeError, ZeroDivisionError)):
        run()
    assert same_state(before, state(model))


def test_trace_leaves_the_inputs_alone() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 2))
    x = X - 0.5
    kept = x.clone()
    select_layers(model, x, "all")
    assert torch.equal(x, kept)


def test_works_inside_inference_mode() -> None:
    model = ResidualNet(True)
    want = names(model, "all")
    with torch.inference_mode():
        assert names(model, "all", torch.rand(2, 3, 8, 8)) == want
        with capture(model, want) as found:
            model(torch.rand(2, 3, 8, 8))
        assert list(found) == want


# --- wrappers


def test_wrappers_change_neither_names_nor_values() -> None:
    bare = ResidualNet()
    want_names = names(bare, "all")
    want = captured(bare, want_names, (X - 0.5) / 0.25)

    def pixel(model: nn.Module) -> nn.Module:
        return Normalized(model, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    wrapped = [
        pixel(bare),
        nn.DataParallel(pixel(bare)),
        pixel(nn.DataParallel(bare)),
        torch.compile(pixel(bare)),
        torch.compile(nn.DataParallel(pixel(torch.compile(bare)))),
    ]
    for model in wrapped:
        assert unwrap(model) is bare
        assert names(model, "all") == want_names
        found = captured(model, want_names)
        for name in want_names:
            torch.testing.assert_close(found[name], want[name])


def test_wrappers_inside_the_encoder_leave_no_trace_in_the_names() -> None:
    bare = ResidualNet()
    want_names = names(bare, "all")
    want = captured(bare, want_names)
    bare.stages = nn.DataParallel(bare.stages)
    bare.relu = torch.compile(bare.relu)
    assert names(bare, "all") == want_names
    assert all(torch.equal(value, want[n]) for n, value in captured(bare, want_names).items())


def test_a_model_that_was_compiled_before_is_captured() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(X)  # compiles code that knows of no hooks
        assert len(compilations) == 1
        with capture(compiled, ["2"]) as found:
            compiled(X)
        assert torch.equal(found["2"], model[:3](X))
        compiled(X)
        assert len(compilations) == 1


def test_data_parallel_replicas_are_refused() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    with capture(model, ["0"]):
        # What nn.DataParallel does on several devices: copies that share the hooks.
        model[0] = model[0]._replicate_for_data_parallel()
        with pytest.raises(UserError, match="DataParallel replicas"):
            model(X)


def test_weight_norm_s_inner_modules_are_no_layers() -> None:
    model = nn.Sequential(OrderedDict(conv=weight_norm(nn.Conv2d(3, 3, 3)), flat=nn.Flatten()))
    model.add_module("fc", weight_norm(nn.Linear(108, 3)))
    assert trace(model, X) == [
        Layer("conv", (3, 6, 6), "ParametrizedConv2d", True),
        Layer("flat", (108,), "Flatten", True),
    ]
    assert head_name(model, X) == "fc"


# --- transformers


@pytest.mark.parametrize(("size", "tokens"), [(32, 65), (8, 17)])
def test_our_vit(size: int, tokens: int) -> None:
    model = build_model("vit_tiny", classes=10, image_size=size, dim=24, depth=3)
    x = torch.rand(2, 3, size, size)
    layers = select_layers(model, x).layers
    assert [layer.name for layer in layers] == [
        "pos_drop", "blocks.0", "blocks.1", "blocks.2", "norm"
    ]  # fmt: skip
    assert [layer.shape for layer in layers] == [(tokens, 24)] * 4 + [(24,)]
    found = captured(model, ["pos_drop", "blocks.0", "norm", "head"], x)
    with torch.no_grad():
        assert torch.equal(found["blocks.0"], model.blocks[0](found["pos_drop"]))
        assert torch.equal(found["head"], model.head(found["norm"]))


def test_timm_s_vit_tiny() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=48)
    x = torch.rand(2, 3, 48, 48)
    blocks = [f"blocks.{i}" for i in range(12)]
    layers = select_layers(model, x).layers
    assert [layer.name for layer in layers] == ["norm_pre", *blocks, "head_drop"]
    assert [layer.shape for layer in layers] == [(10, 192)] * 13 + [(192,)]
    found = captured(model, ["blocks.11", "head_drop"], x)
    with torch.no_grad():
        assert torch.equal(found["head_drop"], model.norm(found["blocks.11"])[:, 0])


def test_torchvision_s_vit() -> None:
    model = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    assert names(model) == ["encoder.dropout", *blocks, "encoder"]
    assert head_name(model, X) == "heads.head"
    assert not [name for name in names(model, "all") if name.startswith("heads")]


class Encoder(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, dropout=0.1, activation="gelu", batch_first=batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.embed = nn.Linear(24, 16)
        self.head = nn.Linear(16, 10)
        self.axis = 1 if batch_first else 0

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2).transpose(1, 2).reshape(-1, 8, 24))
        if self.axis == 0:
            tokens = tokens.transpose(0, 1)
        return self.head(self.encoder(tokens).mean(self.axis))


def test_the_fast_path_of_transformer_layers_hides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Encoder().eval()
    assert names(model) == ["embed", "encoder.layers.0", "encoder.layers.1"]
    every = names(model, "all")
    assert "encoder.layers.1.linear1" in every
    assert "encoder.layers.0.self_attn" in every
    with pytest.raises(UserError, match=r"never runs \(encoder.layers.0.self_attn.out_proj\)"):
        select_layers(model, X, "encoder.layers.0.*out_proj")

    with torch.no_grad():
        h = model.embed(X.flatten(2).transpose(1, 2).reshape(-1, 8, 24))
        plain = model(X)  # on the fast path
        assert torch.backends.mha.get_fastpath_enabled()
        first = model.encoder.layers[0]
        attended = first.self_attn(h, h, h)[0]
        middle = first.norm1(h + attended)
        hidden = first.linear1(middle)
        last = first.norm2(middle + first.linear2(F.gelu(hidden)))
    want = {"self_attn": attended, "norm1": middle, "linear1": hidden, "norm2": last, "": last}
    for part, value in want.items():
        # One name at a time: hooks elsewhere must not be what switches the fast path off.
        name = f"encoder.layers.0.{part}".rstrip(".")
        found = captured(model, [name, "head"])
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["head"], plain, rtol=1e-5, atol=1e-5)

    # Off even where nothing is captured, or a value would depend on what else is captured.
    def fast_path(*_: object) -> Tensor:
        raise ZeroDivisionError

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", fast_path)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        model(X)
    captured(model, ["head"])


def test_tokens_before_the_batch_are_no_layers() -> None:
    model = Encoder(batch_first=False)
    selection = select_layers(model, X)
    assert [layer.name for layer in selection.layers] == ["embed"]
    assert selection.note is not None
    with pytest.raises(UserError, match=r"expected floating-point values of shape \(3, ...\)"):
        captured(model, ["encoder.layers.0"])


# --- the head


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T


class WithHead(nn.Module):
    """Features (batch, 6), then a head of many kinds."""

    def __init__(self, finish: Callable[[nn.Module, Tensor], object], **head: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        for name, module in head.items():
            self.add_module(name, module)
        self.finish = finish

    def forward(self, x: Tensor) -> object:
        return self.finish(self, self.pool(self.norm(self.conv(x))).flatten(1))


def two_outputs(model: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
    logits = model.fc(h)
    return logits, model.project(h)


BODY = ["conv", "norm", "pool"]


@pytest.mark.parametrize(
    ("model", "head", "layers"),
    [
        (WithHead(lambda m, h: m.fc(h), fc=nn.Linear(6, 10)), "fc", BODY),
        (
            WithHead(
                lambda m, h: m.top(h),
                top=nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Sequential(nn.Linear(10, 10))),
            ),
            "top.2.0",
            [*BODY, "top.0", "top.1"],
        ),
        (WithHead(lambda m, h: m.fc(h) * 3, fc=nn.Linear(6, 10)), "fc", BODY),
        (WithHead(lambda m, h: m.fc(h).mul_(3), fc=nn.Linear(6, 10)), "fc", BODY),
        (
            WithHead(
                lambda m, h: m.top(h), top=nn.Sequential(nn.Linear(6, 10), nn.LogSoftmax(dim=1))
            ),
            "top.0",
            BODY,
        ),
        (
            WithHead(
                lambda m, h: m.flat(m.fc(h[:, :, None, None])),
                fc=nn.Conv2d(6, 10, 1),
                flat=nn.Flatten(),
            ),
            "fc",
            BODY,
        ),
        (WithHead(lambda m, h: m.fc(h), fc=Cosine()), "fc", BODY),
        (WithHead(lambda m, h: m.fc(h), fc=nn.Identity()), "fc", BODY),
        (WithHead(lambda m, h: h), None, BODY),
        (
            WithHead(two_outputs, fc=nn.Linear(6, 10), project=nn.Linear(6, 4)),
            "fc",
            [*BODY, "project"],
        ),
        (
            WithHead(
                lambda m, h: (m.fc(h) + m.fc_dist(h)) / 2,
                fc=nn.Linear(6, 10),
                fc_dist=nn.Linear(6, 10),
            ),
            "fc",
            BODY,
        ),
        # six channels can't be ten logits: the last convolution is no head
        (
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(3, 6, 3),
                    out=Returns(lambda x: x.mean((2, 3)) @ torch.ones(6, 10)),
                )
            ),
            None,
            ["conv", "out"],
        ),
    ],
)
def test_the_head_is_found_and_left_out(
    model: nn.Module, head: str | None, layers: list[str]
) -> None:
    x = torch.rand(2, 3, 32, 32)
    assert head_name(model, x) == head
    assert names(model, "all", x) == layers
    assert names(model, "*", x) == layers
    if head is not None:
        with pytest.raises(UserError, match=f"matches only what is the head.*{head}"):
            select_layers(model, x, head)


def test_heads_of_known_networks() -> None:
    squeeze = torchvision.models.squeezenet1_1(num_classes=10)  # convolution, ReLU, pooling
    x = torch.rand(2, 3, 32, 32)
    assert head_name(squeeze, x) == "classifier.1"
    assert [n for n in names(squeeze, "all", x) if "classifier" in n] == ["classifier.0"]
    vgg = torchvision.models.vgg11(num_classes=10)
    assert head_name(vgg, x) == "classifier.6"
    resnet = torchvision.models.resnet18()
    with_head = names(resnet, "all", x)
    resnet.fc = nn.Identity()
    assert names(resnet, "all", x) == with_head
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    assert head_name(distilled, x) == "head"
    assert not {"head", "head_dist"} & set(names(distilled, "all", x))


# --- blocks


class Stage(nn.Module):
    """A stage that is a module of its own and hands on what its last block gave."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(inputs, width, 1)
        self.blocks = nn.ModuleList([Residual(width, width, True), Residual(width, width, True)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class Branches(nn.Module):
    """An inception-like module: its units are in lists, but they are branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(Unit(4, 2), Unit(2, 2))
        self.b = nn.Sequential(Unit(4, 2), Unit(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Adds(nn.Module):
    """A block that adds its shortcut in place, into the memory of its last unit's output."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Sequential(Unit(4, 4), Unit(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        out = self.units(x)
        out += x
        return out


class Double(nn.Module):
    """A block without shortcut, made of modules of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Unit(4, 4)
        self.second = Unit(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class ScaledNorm(nn.Module):
    """Not a leaf, in lists, repeated, but without weights that mix channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.norm(x)


def net(*body: nn.Module, pool: bool = True) -> nn.Sequential:
    top = [nn.AdaptiveAvgPool2d(1)] if pool else []
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 4, 3),
            act=nn.ReLU(inplace=True),
            body=nn.Sequential(*body),
            top=nn.Sequential(*top, nn.Flatten(), nn.LazyLinear(10)),
        )
    )


@pytest.mark.parametrize(
    ("model", "want"),
    [
        # nested Sequentials, a downsampling first block, a functional pooling
        (ResidualNet(True), ["relu", "stages.0.0", "stages.1.0"]),
        # stages are looked into; what enters the first block is the first downsampling's output
        (
            net(Stage(4, 4), Stage(4, 6)),
            [
                "body.0.downsample",
                *(f"body.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)),
                "top.1",
            ],
        ),
        # a block is none, though its output is in the memory of what its last unit gave
        (net(Adds(), Adds()), ["act", "body.0", "body.1", "top.1"]),
        # a block made of units is one block
        (net(Double(), Double()), ["act", "body.0", "body.1", "top.1"]),
        # norms and poolings between blocks are no blocks, and one block of a kind is none
        (
            net(ScaledNorm(4), Double(), ScaledNorm(4), Double(), Unit(4, 4)),
            ["body.0", "body.1", "body.3", "top.1"],
        ),
        # branches of a larger module are none: nothing else is a block here
        (
            WithHead(
                lambda m, h: m.fc(m.two(m.one(h[:, :4, None, None])).flatten(1)),
                one=Branches(),
                two=Branches(),
                fc=nn.Linear(4, 10),
            ),
            ["conv", "norm", "pool", "one", "two"],
        ),
        # the larger modules are, if they are in a list
        (net(Branches(), Branches()), ["act", "body.0", "body.1", "top.1"]),
        # no pooling: the flattened last block is the last block
        (net(Double(), Double(), pool=False), ["act", "body.0", "body.1"]),
    ],
)
def test_blocks_are_found_in_a_user_s_network(model: nn.Module, want: list[str]) -> None:
    model(X)  # lazy layers
    assert names(model) == want


def test_one_block_applied_many_times() -> None:
    block = Double()
    model = net(block, block, block)
    model(X)
    assert names(model) == ["act", "body.0", "body.0@2", "body.0@3", "top.1"]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("preact_resnet18", ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))]),
        ("timm/convnext_atto", ["stages.0.downsample", *(
            f"stages.{i}.blocks.{j}" for i, n in enumerate((2, 2, 6, 2)) for j in range(n)
        )]),
        ("torchvision/mobilenet_v3_small", [f"features.{i}" for i in range(12)]),
        ("torchvision/regnet_x_400mf", ["stem", *(
            f"trunk_output.block{i}.block{i}-{j}"
            for i, n in enumerate((1, 2, 7, 12), start=1) for j in range(n)
        )]),
        ("torchvision/densenet121", ["features.pool0", *(
            f"features.denseblock{i}" for i in (1, 2, 3, 4)
        )]),
    ],
)  # fmt: skip
def test_blocks_of_known_networks(name: str, want: list[str]) -> None:
    model = build_model(name, classes=10)
    found = names(model, "blocks", torch.rand(1, 3, 32, 32))
    assert found[:-1] == want  # and the pooled features
    assert found[-1] in ("avgpool", "head.drop", "classifier.2", "features")


def test_without_blocks_the_top_level_children_and_a_note() -> None:
    plain = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            flat=nn.Flatten(),
            classifier=nn.Sequential(nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 10)),
        )
    )
    selection = select_layers(plain, X, "blocks")
    # The classifier's output is the logits, so its other children stand for it.
    want = ["features", "flat", "classifier.0", "classifier.1"]
    assert [layer.name for layer in selection.layers] == want
    assert selection.note is not None
    assert "4 top-level layers" in selection.note
    inside = nn.Sequential(OrderedDict(net=plain))
    assert names(inside) == [f"net.{name}" for name in want]
    assert select_layers(ResidualNet(), X, "blocks").note is None
    assert select_layers(plain, X, ["all", "features"]).note is None


# --- patterns


def test_patterns_select_in_execution_order() -> None:
    model = ResidualNet()
    assert names(model, "stages.*.conv2") == ["stages.0.0.conv2", "stages.1.0.conv2"]
    assert names(model, ["stages.1.0.conv[12]", "relu", "stages.1"]) == [
        "relu", "stages.1.0.conv1", "stages.1.0.conv2", "stages.1"
    ]  # fmt: skip
    assert names(model, ["stages.0.0.bn1", "blocks"]) == [
        "relu", "stages.0.0.bn1", "stages.0.0", "stages.1.0"
    ]  # fmt: skip
    assert names(model, "*") == names(model, "all")
    assert names(model, "*@2") == ["stages.0.0.relu@2", "stages.1.0.relu@2"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("stages.0.0.cnv1", "matches no layer; near: stages.0.0.conv1"),
        ("Stages.*", "matches no layer"),
        ("unused", r"never runs \(unused\); near: "),
        ("*fc", r"is the head, which is no layer \(fc\)"),
        ("", "matches no layer"),
    ],
)
def test_patterns_that_match_nothing(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_layers(ResidualNet(), X, ["all", pattern])


def test_misuse_of_capture() -> None:
    model = build_model("vit_tiny", classes=10, image_size=8, dim=24, depth=1)
    for name in ("blocks.0.atn", ""):
        with pytest.raises(UserError, match="the model has no layer"), capture(model, [name]):
            pass
    with (
        capture(model, ["patch_embed"]),
        pytest.raises(UserError, match="expected a call of the model itself"),
    ):
        model.patch_embed(X)


def test_models_without_layers_and_inputs_without_images() -> None:
    assert trace(nn.Linear(8, 2), torch.rand(2, 8)) == []
    with pytest.raises(UserError, match="Linear has no layers to choose from"):
        select_layers(nn.Linear(8, 2), torch.rand(2, 8))
    with pytest.raises(UserError, match="at least one image"):
        trace(ResidualNet(), X[:0])
