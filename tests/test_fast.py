"""The faster copy of a frozen network: the same answers, never behind, never in the way."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.attacks import apgd, faster, pgd, square
from repsim.attacks.fast import _copies, compiled
from repsim.hooks import capture
from repsim.models import Normalized, build_model

X = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 10


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """Normalisations with statistics and weights that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                    module.bias.copy_(torch.randn(shape, generator=generator) * 0.3)
    return net.eval().requires_grad_(False)


def resnet(seed: int = 0, name: str = "resnet8") -> nn.Module:
    torch.manual_seed(seed)
    return lively(
        Normalized(build_model(name, classes=10, image_size=16), [0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    )


def norms(net: nn.Module) -> int:
    return sum(type(module) is nn.BatchNorm2d for module in net.modules())


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(net(x), Y), x)[0]


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50", "torchvision/resnet18"])
def test_every_normalisation_is_folded_and_the_answers_stay(name: str) -> None:
    net = resnet(name=name)
    copied = faster(net, X)
    assert norms(net) > 0
    assert norms(copied) == 0
    torch.testing.assert_close(copied(X), net(X), rtol=1e-4, atol=1e-4 * float(net(X).abs().max()))
    # In float64: a ReLU at 0 up to rounding would pass the gradient in one and not in the other.
    exact = net.double()
    ours, theirs = gradient(faster(exact, X.double()), X.double()), gradient(exact, X.double())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9 * float(theirs.abs().max()))


def test_in_float64_folding_is_exact() -> None:
    net = resnet().double()
    copied = faster(net, X.double())
    assert norms(copied) == 0
    torch.testing.assert_close(copied(X.double()), net(X.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.encoder.conv1.weight.data.mul_(1.5),  # .data: no version counter moves
        lambda net: net.encoder.bn1.running_mean.add_(0.5),
        lambda net: net.encoder.linear.bias.data.add_(1.0),
        lambda net: net.load_state_dict(resnet(seed=5).state_dict()),
        lambda net: setattr(net.encoder, "linear", nn.Linear(64, 10).eval().requires_grad_(False)),
        lambda net: net.double(),
    ],
)
def test_the_copy_is_never_behind_the_network(change: Callable[[nn.Module], object]) -> None:
    net = resnet()
    before = faster(net, X)(X)
    change(net)
    x = X.to(next(net.parameters()).dtype)
    torch.testing.assert_close(faster(net, x)(x), net(x), rtol=1e-4, atol=1e-3)
    assert faster(net, x) is not net
    assert not torch.allclose(before, faster(net, X.to(x))(x).float()) or x.dtype == torch.float64


def test_the_copy_is_made_once_and_dies_with_the_network() -> None:
    net = resnet()
    assert faster(net, X) is faster(net, X)
    there, copied = weakref.ref(net), weakref.ref(faster(net, X))
    assert net in _copies
    del net
    gc.collect()
    assert there() is None
    assert copied() is None


class Shared(nn.Module):
    """The convolution's output is used before its normalisation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return self.head(torch.cat([out.mean((2, 3)), self.bn(out).mean((2, 3))], 1))


class Twice(Shared):
    """One convolution runs twice, once without a normalisation after it."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.bn(self.conv(x)).mean((2, 3))
        return self.head(torch.cat([first, self.conv(x.flip(3)).mean((2, 3))], 1))


class Random(Shared):
    """Draws in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x)).mean((2, 3))
        return self.head(torch.cat([out, torch.randn_like(out)], 1))


class Batchwise(Shared):
    """A normalisation without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x)).mean((2, 3))
        return self.head(torch.cat([out, out], 1))


@pytest.mark.parametrize("kind", [Shared, Twice, Random, Batchwise])
def test_what_cannot_be_folded_is_left_alone(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = lively(kind())
    assert faster(net, X) is net


def test_no_convolution_no_copy() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).eval()
    assert faster(net, X) is net


def test_hooks_see_every_forward_of_an_attack() -> None:
    """A network with hooks, as inside `capture`, is run itself."""
    net, seen = resnet(), []
    handle = net.register_forward_hook(lambda *_: seen.append(1))
    assert faster(net, X) is net
    pgd(net, X, Y, steps=3)
    assert len(seen) == 4
    handle.remove()
    assert faster(net, X) is not net


def test_attacks_on_the_copy_are_attacks_on_the_network() -> None:
    net = resnet()
    hooked = copy.deepcopy(net)
    hooked.register_forward_hook(lambda *_: None)  # keeps the copy away
    for mode in ("represent", "evaluate"):
        ours, theirs = {}, {}  # type: ignore[var-annotated]
        fast = pgd(net, X, Y, steps=10, mode=mode, record=ours)
        slow = pgd(hooked, X, Y, steps=10, mode=mode, record=theirs)
        # A sign of a gradient that is all but 0 may turn; what counts is how far both come.
        assert (fast - slow).abs().gt(1e-6).float().mean() < 0.02
        torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-2, atol=1e-2)
        assert torch.equal(ours["first_success"], theirs["first_success"])


def test_the_network_keeps_its_gradients_and_mode() -> None:
    net = resnet().train().requires_grad_(True)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    pgd(net, X, Y, steps=2)
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_without_a_compiler_the_copy_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    net = resnet()

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    found = compiled(net, X)
    assert norms(found) == 0
    torch.testing.assert_close(found(X), net(X), rtol=1e-4, atol=1e-3)


@pytest.mark.slow  # some 20 seconds of compilation
def test_compiled_it_gives_the_same_for_any_batch_size() -> None:
    net = resnet()
    quick = compiled(net, X)
    for batch in (8, 5, 3):
        x = X[:batch]
        torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-3)
    kept = pgd(net, X, Y, steps=5)
    found = pgd(quick, X, Y, steps=5)
    assert (kept - found).abs().gt(1e-6).float().mean() < 0.02


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.load_state_dict(resnet(seed=7).state_dict(), assign=True),
        lambda net: setattr(net.encoder.conv1, "weight", nn.Parameter(torch.randn(16, 3, 3, 3))),
        lambda net: setattr(net.encoder.conv1, "padding", (0, 0)),
        lambda net: setattr(net.encoder.bn1, "eps", 3.0),
    ],
)
def test_the_copy_notices_what_no_weight_shows(change: Callable[[nn.Module], object]) -> None:
    net = resnet()
    before = faster(net, X)(X)
    change(net)
    net.requires_grad_(False)
    after = faster(net, X)(X)
    torch.testing.assert_close(after, net(X), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(before, after, atol=1e-2)


def test_a_forward_of_the_object_itself_is_kept() -> None:
    net = resnet()
    plain = net.forward
    net.forward = lambda x: plain(1 - x)  # type: ignore[method-assign]
    assert faster(net, X) is net


def test_forwards_without_gradients_go_through_the_trace_and_follow_the_weights() -> None:
    net = resnet()
    copied = faster(net, X)
    traced = vars(copied)["forward"]
    with torch.no_grad():
        for _ in range(20):
            found = copied(X)
        assert traced.trace is not None
        torch.testing.assert_close(found, net(X), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(copied(X[:3]), net(X[:3]), rtol=1e-3, atol=1e-3)
        net.encoder.conv1.weight.mul_(1.5)
        again = faster(net, X)
        assert again is copied
        assert traced.trace is None
        for _ in range(20):
            found = again(X)
        torch.testing.assert_close(found, net(X), rtol=1e-3, atol=1e-3)
    # With a gradient, or with a hook on a layer, the network itself runs.
    assert gradient(copied, X).abs().sum() > 0
    seen: list[int] = []
    with torch.no_grad(), capture(copied, ["layer1.0"]) as layers:
        copied(X)
        seen.append(len(layers))
    assert seen == [1]


class Branches(Shared):
    """Takes another way for bright images: a trace would hold one of the two."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x)).mean((2, 3))
        if float(x.mean()) > 0.6:
            out = -out
        return self.head(torch.cat([out, out], 1))


def test_a_branch_that_depends_on_values_is_not_traced() -> None:
    torch.manual_seed(0)
    net = lively(Branches())
    copied = faster(net, X)
    assert copied is not net
    bright = X * 0.2 + 0.8
    with torch.no_grad():
        for _ in range(20):
            copied(X)
        torch.testing.assert_close(copied(bright), net(bright), rtol=1e-3, atol=1e-4)


# --- in bfloat16 ------------------------------------------------------------------------------


def test_in_autocast_the_folded_network_is_used_and_compared_in_float32() -> None:
    net = resnet()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        copied = faster(net, X)
        assert copied is not net
        assert norms(copied) == 0
        assert copied(X).dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert copied is faster(net, X)
    torch.testing.assert_close(copied(X), net(X), rtol=1e-4, atol=1e-4)


ATTACKS: dict[str, Callable[..., Tensor]] = {"pgd": pgd, "apgd": apgd, "square": square}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_what_leaves_an_attack_in_bfloat16_is_fooled_in_float32(name: str) -> None:
    """Logits that bfloat16 rounds to a tie are told apart, so that no image leaves too early."""

    class Near(nn.Module):
        """The class is whether the mean pixel is below 0.46; bfloat16 cannot see how far."""

        def forward(self, x: Tensor) -> Tensor:
            size = x.flatten(1).mean(1)
            logits = 8 + torch.stack([size - 0.46, 0 * size, 0 * size - 9], 1)
            return logits.bfloat16() if torch.is_autocast_enabled("cpu") else logits

    x = torch.full((16, 3, 8, 8), 0.447) + 0.0006 * torch.arange(16).view(-1, 1, 1, 1)
    y = torch.ones(16, dtype=torch.int64)
    net, record = Near().eval(), dict[str, Tensor]()
    assert (net(x).argmax(1) == 1).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (net(x).argmax(1) == 0).all()  # a tie goes to the first class
        attacked = ATTACKS[name](net, x, y, eps=0.03, mode="evaluate", record=record)
    assert (net(attacked).argmax(1) == 0).all()
    assert (record["first_success"] >= 0).all()


@pytest.mark.parametrize("mode", ["represent", "evaluate"])
@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_the_loss_recorded_in_bfloat16_is_that_of_the_result_in_float32(
    name: str, mode: str
) -> None:
    net, record = resnet(), dict[str, Tensor]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attacked = ATTACKS[name](net, X, Y, eps=2 / 255, steps=5, mode=mode, record=record)
    wanted = F.cross_entropy(net(attacked), Y, reduction="none")
    torch.testing.assert_close(record["loss"], wanted, rtol=1e-4, atol=1e-4)
    plain = ATTACKS[name](net, X, Y, eps=2 / 255, steps=5, mode=mode)
    found = F.cross_entropy(net(plain), Y, reduction="none")
    if mode == "represent":
        torch.testing.assert_close(wanted.mean(), found.mean(), rtol=0.05, atol=0.02)
