"""Each kind of finding: a small module that has it, and one that has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from repsim.cli import main
from repsim.errors import UserError
from repsim.hooks.doctor import ADVICE, Checkup, examine
from repsim.hooks.record import digest, record

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Step = Callable[["Net", Tensor], object]


class Net(nn.Module):
    """conv -> act -> `step` -> mean over space -> fc."""

    def __init__(self, step: Step = lambda net, x: x, **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        for name, module in modules.items():
            setattr(self, name, module)
        self.fc = nn.Linear(4, 5)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        y = self.step(self, self.act(self.conv(x)))
        assert isinstance(y, Tensor)
        return self.fc(y.mean((2, 3)))


class Give(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def through(module: nn.Module) -> Net:
    return Net(lambda net, x: net.part(x), part=module)


def beside(module: nn.Module) -> Net:
    """The module runs, its output is not used."""

    def step(net: Net, x: Tensor) -> Tensor:
        net.part(x)
        return x

    return Net(step, part=module)


def found(net: nn.Module, kind: str) -> dict[str, str]:
    return {one.layer: one.detail for one in examine(net, IMAGES).of(kind)}


def kinds(checkup: Checkup) -> set[str]:
    return {one.kind for one in checkup.findings}


def test_a_plain_network_has_nothing() -> None:
    checkup = examine(Net(), IMAGES)
    assert checkup.findings == []
    assert checkup.notes == []
    assert checkup.modules == 3
    assert checkup.layers == ["conv", "act"]


def test_a_module_that_never_runs() -> None:
    assert found(Net(unused=nn.Linear(2, 2)), "never runs") == {"unused": "Linear"}


def test_a_module_that_runs_in_train_mode_only() -> None:
    net = Net(lambda net, x: net.aux(x) if net.training else x, aux=nn.Conv2d(4, 4, 1))
    assert found(net, "never runs") == {"aux": "Conv2d; in train mode only"}


def test_a_container_whose_children_are_called() -> None:
    net = Net(lambda net, x: net.parts[0](x), parts=nn.ModuleList([nn.Conv2d(4, 4, 1)]))
    assert list(found(net, "never runs")) == ["parts"]


def test_weights_that_the_module_around_uses() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.conv.weight)

    assert (
        "part runs and may use its weights" in found(through(Around()), "never runs")["part.conv"]
    )


def test_a_module_that_runs_three_times() -> None:
    net = Net(lambda net, x: net.act(net.act(x - 1) - 1))
    assert found(net, "runs again") == {"act": "3 calls: act to act@3"}


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        (lambda x: (x + 1, None), "tuple of 2; [0] is taken, 4×6×6"),
        (lambda x: {"aux": None, "out": [x + 1]}, "dict of 2; ['out'][0] is taken, 4×6×6"),
    ],
)
def test_nested_outputs(function: Callable[[Tensor], object], detail: str) -> None:
    net = beside(Give(function))
    assert found(net, "nested output") == {"part": detail}
    assert found(net, "no activation") == {}


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x.argmax(1), "int64 values of shape (7, 6, 6)"),
        (lambda x: x.transpose(0, 1) + 1, "the first dimension is not the batch of 7"),
        (lambda x: x.mean((1, 2, 3)), "shape (7,): no features"),
        (lambda x: None, "no tensor but NoneType"),
        (lambda x: ("a", 1), "no tensor but tuple"),
    ],
)
def test_outputs_that_are_no_activations(function: Callable[[Tensor], object], why: str) -> None:
    assert why in found(beside(Give(function)), "no activation")["part"]


def test_an_in_place_relu_and_an_added_shortcut() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.two(self.relu(self.one(x)))
            out += x
            return self.relu(out)

    changed = found(through(Block()), "changed in place")
    assert changed == {
        "part.one": "written again by part.relu",
        "part.two": "written again by part and part.relu",
    }


def test_a_change_in_place_that_these_images_do_not_show() -> None:
    detail = found(through(nn.ReLU(inplace=True)), "changed in place")["act"]
    assert detail == "written again by part; these images leave its values as they were"


def test_a_change_behind_autograds_back() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        x.data += 1
        return x

    class Foreign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.numpy()[:] += 1  # numpy writes the memory, torch does not know
            return x * 1

    assert list(found(Net(step), "changed in place")) == ["act"]
    assert "autograd does not see" in found(through(Foreign()), "changed in place")["act"]


@pytest.mark.parametrize(
    ("module", "layer", "where"),
    [
        (nn.Identity(), "part", "equals act; the same memory"),
        (Give(torch.clone), "part", "equals act; a copy"),
        (nn.Flatten(2), "part", "equals act; the same memory"),
        (nn.Sequential(nn.Conv2d(4, 4, 1)), "part", "equals part.0; the same memory"),
        (nn.Dropout(0.5), "part", "equals act; the same memory"),
    ],
)
def test_duplicates(module: nn.Module, layer: str, where: str) -> None:
    net = Net(lambda net, x: net.part(x).reshape(len(x), 4, 6, 6), part=module)
    assert found(net, "duplicate") == {layer: where}
    shared = {layer: f"all of {where.split()[1].rstrip(';')}"} if "same" in where else {}
    assert found(net, "view") == shared


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        (lambda x: x[:, :2].repeat(1, 2, 1, 1), None),
        (lambda x: x[:, :2], "a part of act"),
        (lambda x: x.permute(0, 2, 3, 1), "another order of act"),
    ],
)
def test_views_that_are_no_duplicates(
    function: Callable[[Tensor], object], detail: str | None
) -> None:
    net = beside(Give(function))
    assert found(net, "view") == ({} if detail is None else {"part": detail})
    assert found(net, "duplicate") == {}


def test_the_result_of_an_operation_in_place_is_no_view() -> None:
    net = Net(lambda net, x: net.part(x - 0.1 * x.mean()), part=nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)))  # fmt: skip
    assert found(net, "view") == {"part": "all of part.1"}
    assert list(found(net, "changed in place")) == ["part.0"]


class Fused(nn.Module):
    """Computes by hand what its child would, where `when` says so."""

    def __init__(self, when: Callable[[], bool]) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)
        self.when = when

    def forward(self, x: Tensor) -> Tensor:
        if self.when() and not self.training:
            return nn.functional.conv2d(x, self.inner.weight, self.inner.bias)
        return self.inner(x)


def test_a_path_without_gradients_that_skips_hooks() -> None:
    detail = found(through(Fused(lambda: not torch.is_grad_enabled())), "fused")
    assert detail == {"part.inner": "Conv2d; runs with gradients only, skipped without"}


def test_a_fast_path_that_repsim_switches_off() -> None:
    detail = found(through(Fused(torch.backends.mha.get_fastpath_enabled)), "fused")
    assert list(detail) == ["part.inner"]
    assert "which repsim switches off" in detail["part.inner"]
    assert torch.backends.mha.get_fastpath_enabled()


def test_attention_never_calls_its_projection() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    net = Net(lambda net, x: net.part(x.flatten(2)[..., :6]).unsqueeze(-1), part=layer)
    checkup = examine(net, IMAGES)
    assert [one.layer for one in checkup.of("fused")] == ["part.self_attn.out_proj"]
    assert {"part.linear1", "part.norm2", "part.self_attn"} <= set(checkup.layers)
    assert checkup.of("nested output")[0].layer == "part.self_attn"


def test_random_outputs_name_the_first_layer() -> None:
    drop = Give(lambda x: nn.functional.dropout(x, 0.5, training=True))
    after = nn.Sequential(drop, nn.Conv2d(4, 4, 1))
    detail = found(through(after), "random")
    assert list(detail) == ["part.0"]
    assert detail["part.0"] == "another output in a second run, and so are 4 after it"


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2


def test_a_buffer_that_changes_in_eval_mode_and_is_put_back() -> None:
    net = through(Counter())
    assert found(net, "changes a buffer") == {"part": "calls"}
    assert net.part.calls == 0
    frozen = through(nn.BatchNorm2d(4, track_running_stats=True))
    assert found(frozen, "changes a buffer") == {}  # in train mode only, and put back
    assert torch.equal(frozen.part.running_mean, torch.zeros(4))


def test_constant_and_not_finite() -> None:
    assert list(found(beside(Give(torch.zeros_like)), "constant")) == ["part"]
    assert list(found(beside(Give(lambda x: x / 0)), "not finite")) == ["part"]
    zeros = Net(lambda net, x: net.a(x) + net.b(x), a=Give(torch.zeros_like),
                b=Give(torch.zeros_like))  # fmt: skip
    assert found(zeros, "duplicate") == {}  # two constants are no copies of one another


def test_the_model_stays_as_it_was() -> None:
    net = Net(lambda net, x: net.norm(net.drop(x)), drop=nn.Dropout(), norm=nn.BatchNorm2d(4))
    net.train()
    net.drop.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.conv.weight.requires_grad_(False)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    examine(net, IMAGES)
    assert torch.equal(torch.rand(3), expected)
    assert net.training
    assert not net.drop.training
    assert not net.conv.weight.requires_grad
    assert net.fc.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_compiled_model_is_run_uncompiled() -> None:
    compiled = torch.compile(Net(), backend="eager")
    checkup = examine(compiled, IMAGES)
    assert checkup.layers == ["conv", "act"]
    assert "compiled" in checkup.notes[0]


def test_a_forward_that_cannot_train_is_noted() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        if net.training:
            raise RuntimeError("not today")
        return x

    checkup = examine(Net(step), IMAGES)
    assert "in train mode" in checkup.notes[0]
    assert "not today" in checkup.notes[0]


def test_torchvision_resnet_changes_every_norm_before_a_relu() -> None:
    network = torchvision.models.resnet18(num_classes=4)
    checkup = examine(network, torch.rand(7, 3, 32, 32))
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    expected = {"bn1", *(f"{b}.bn{k}" for b in blocks for k in (1, 2))}
    assert {one.layer for one in checkup.of("changed in place")} == expected
    assert [one.layer for one in checkup.of("runs again")] == [f"{b}.relu" for b in blocks]
    down = {f"layer{i}.0.downsample" for i in (2, 3, 4)}
    stages = {f"layer{i}" for i in range(1, 5)}
    # At 32 pixels the last feature map is one pixel: pooling leaves it as it is.
    twins = {one.layer for one in checkup.of("duplicate")}
    assert twins == {*blocks, *down, *stages, "avgpool"}
    assert kinds(checkup) == {"changed in place", "runs again", "duplicate", "view"}


def test_torchvision_vit_and_its_attention() -> None:
    vit = torchvision.models.VisionTransformer(32, 16, 2, 2, 12, 24, num_classes=4)
    checkup = examine(vit, torch.rand(7, 3, 32, 32))
    attention = [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)]
    assert [one.layer for one in checkup.of("nested output")] == attention
    assert [one.layer for one in checkup.of("fused")] == [f"{a}.out_proj" for a in attention]


def test_torchvision_googlenet_has_heads_for_training() -> None:
    network = torchvision.models.googlenet(num_classes=4, init_weights=False)
    checkup = examine(network, torch.rand(2, 3, 64, 64))
    silent = checkup.of("never runs")
    assert {one.layer.partition(".")[0] for one in silent} == {"aux1", "aux2"}
    assert all(one.detail.endswith("in train mode only") for one in silent)


def test_a_digest_depends_on_the_values_alone() -> None:
    x = torch.rand(4, 3, 5)
    assert digest(x) == digest(x.reshape(4, 15))
    assert digest(x) == digest(x.transpose(1, 2).contiguous().transpose(1, 2))
    assert digest(x) != digest(x.transpose(1, 2))
    assert digest(x.bfloat16()) != digest(x)


def test_a_record_keeps_what_each_module_gave() -> None:
    with torch.no_grad():
        outputs = record(Net().eval(), IMAGES[:7], keep=True)
    assert [one.name for one in outputs] == ["conv", "act", "fc", "(network)"]
    assert outputs[2].shares_memory(outputs[3])
    assert not outputs[0].shares_memory(outputs[1])


def test_errors_are_one_line() -> None:
    with pytest.raises(UserError, match="at least one image"):
        examine(Net(), IMAGES[:0])
    with pytest.raises(UserError, match=r"expects other inputs than images of shape \(1, 8, 8\)"):
        examine(Net(), IMAGES[:, :1])
    with pytest.raises(UserError, match="kind among"):
        examine(Net(), IMAGES).of("wrong")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "check.json"
    assert run("layers", "--model", str(checkpoints["st"]), "--check", "--json", str(file)) == 0
    said = capsys.readouterr().out
    content = json.loads(file.read_text())["check"]
    there = {one["kind"] for one in content["findings"]}
    assert set(content["advice"]) == there
    for kind in there:
        assert f": {ADVICE[kind]}" in said
    assert "7 images of noise" in said


def test_the_command_on_an_architecture_and_chosen_layers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = ["--model", "torchvision/resnet18", "--data", "digits", "--image-size", "32"]
    assert run("layers", *network, "--check", "--layers", "layer1.0*") == 0
    said = capsys.readouterr().out
    assert "layer1.0.bn2  written again by layer1.0 and layer1.0.relu" in said
    assert "layer2" not in said
    assert "7 images of data" in said
