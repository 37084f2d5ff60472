from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.models import MODELS, Normalized, build_model
from repsim.models.vit import patch_size

SMALL = {
    "wide_resnet": {"depth": 10, "widen": 1},
    "vit_tiny": {"dim": 24, "depth": 2},
    "vit_small": {"dim": 24, "depth": 2},
}


def parameters(name: str, classes: int = 10, **arguments: object) -> int:
    with torch.device("meta"):
        model = build_model(name, classes=classes, **arguments)
    return sum(p.numel() for p in model.parameters())


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter and statistic away from 0 and 1, so that a forgotten one shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                value.copy_(torch.randn_like(value) * 0.1)
                if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
                    value.add_(1)
    return model.double().eval()


@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds_and_gives_logits_with_gradients_to_the_pixels(name: str) -> None:
    arguments = SMALL.get(name, {})
    if name.startswith("wide_resnet") and not arguments:
        with torch.device("meta"):  # too large to run here
            model = build_model(name, classes=7, channels=1, image_size=8)
            assert model(torch.empty(2, 1, 8, 8)).shape == (2, 7)
        return
    encoder = build_model(name, classes=7, channels=1, image_size=8, **arguments)
    model = Normalized(encoder, (0.5,), (0.25,)).eval()
    pixels = torch.rand(3, 1, 8, 8, requires_grad=True)
    logits = model(pixels)
    assert logits.shape == (3, 7)
    assert logits.std() > 0
    logits.square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert all(p.grad is not None for p in encoder.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    assert parameters("wide_resnet28_10") == 36_479_194  # "36.5M", table 5 of the paper
    assert parameters("wide_resnet34_10") == 46_160_474
    assert parameters("wide_resnet16_4") == parameters("wide_resnet", depth=16, widen=4)
    # resnet18 in the other order: the stem's norm (64) is gone, one of 512 is new, the first block
    # of a later stage normalises its input (64, 128, 256) instead of its output and its shortcut.
    norms = 2 * (-64 + 512 - sum(128 * 2**i + 128 * 2**i - 64 * 2**i for i in range(3)))
    assert parameters("preact_resnet18") - parameters("resnet18") == norms
    # table 1 of DeiT, up to the patch embedding, the position embedding and the head
    block = 12 * 192**2 + 13 * 192
    stem = 3 * 4 * 4 * 192 + 192 + 192 + 65 * 192
    assert parameters("vit_tiny") == 12 * block + stem + 2 * 192 + 192 * 10 + 10


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])


def preactivation_reference(
    x: Tensor, state: dict[str, Tensor], stages: list[str], shortcut: str, last: str, head: str
) -> Tensor:
    """He et al. 2016b written down from the formula, functionally, from a state dict."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for i, stage in enumerate(stages):
        block = 0
        while f"{stage}.{block}.conv1.weight" in state:
            name = f"{stage}.{block}"
            stride = 2 if i > 0 and block == 0 else 1
            active = norm(x, state, f"{name}.bn1").relu()
            out = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = norm(out, state, f"{name}.bn2").relu()
            out = F.conv2d(out, state[f"{name}.conv2.weight"], padding=1)
            if (weight := state.get(f"{name}.{shortcut}")) is not None:
                x = F.conv2d(active, weight, stride=stride)
            x = x + out
            block += 1
        assert block > 0
    x = norm(x, state, last).relu().mean((2, 3))
    return x @ state[f"{head}.weight"].T + state[f"{head}.bias"]


def test_wide_resnet_is_the_paper_s() -> None:
    model = randomise(build_model("wide_resnet", classes=5, depth=16, widen=2))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    stages = [f"block{i}.layer" for i in (1, 2, 3)]
    want = preactivation_reference(
        x, model.state_dict(), stages, "convShortcut.weight", "bn1", "fc"
    )
    torch.testing.assert_close(model(x), want)


def test_preact_resnet_is_the_paper_s() -> None:
    model = randomise(build_model("preact_resnet18", classes=5))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    stages = [f"layer{i}" for i in (1, 2, 3, 4)]
    want = preactivation_reference(
        x, model.state_dict(), stages, "shortcut.0.weight", "bn", "linear"
    )
    torch.testing.assert_close(model(x), want)


def test_vit_is_timm_s_weight_for_weight() -> None:
    ours = randomise(build_model("vit_tiny", classes=5, image_size=16, dim=48, depth=3))
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=2, embed_dim=48, depth=3, num_heads=3, num_classes=5
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs.double().eval()(x))


def test_patches_follow_the_image_size() -> None:
    sizes = {8: 2, 16: 2, 28: 4, 32: 4, 64: 8, 96: 12, 224: 32}
    assert {size: patch_size(size) for size in sizes} == sizes
    assert build_model("vit_tiny", classes=2, depth=1, patch=8).pos_embed.shape == (1, 17, 192)


@pytest.mark.parametrize(
    ("name", "size", "arguments", "message"),
    [
        ("vit_tiny", 29, {}, "image size 29; try --image-size 24"),
        ("vit_tiny", 32, {"patch": 5}, "patch=5 for image size 32; try patch=4"),
        ("vit_tiny", 32, {"heads": 5}, "heads must divide dim, got heads=5, dim=192; try heads=8"),
        ("wide_resnet", 32, {"depth": 20}, "depth of 6n"),
        ("resnet18", 0, {}, "image_size=0"),
        ("resnet18", 32, {"width": 3}, "unexpected keyword argument 'width'"),
    ],
)
def test_impossible_arguments(
    name: str, size: int, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_model(name, classes=10, image_size=size, **arguments)


def test_a_vit_refuses_images_of_another_size() -> None:
    model = build_model("vit_tiny", classes=2, depth=1)
    with pytest.raises(UserError, match=r"made for 32×32 images, got 8×8; try --image-size 32"):
        model(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet10t"])
def test_external_models_have_the_right_classes_and_channels(name: str, channels: int) -> None:
    model = build_model(name, classes=7, channels=channels)
    assert model.training
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["torchvision/vit_b_32", "timm/vit_tiny_patch16_224"])
def test_external_transformers_are_told_the_image_size(name: str) -> None:
    arguments = {} if name.startswith("torch") else {"depth": 1}
    # On the meta device a large network costs nothing; timm 1.0.15 cannot be built there.
    with torch.device("meta" if name.startswith("torch") else "cpu"):
        model = build_model(name, classes=7, image_size=64, **arguments)
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)


def test_grey_stem_gives_a_grey_image_what_it_gave_as_rgb() -> None:
    torch.manual_seed(0)
    rgb = build_model("torchvision/resnet18", classes=4)
    torch.manual_seed(0)
    grey = build_model("torchvision/resnet18", classes=4, channels=1)
    torch.manual_seed(0)
    five = build_model("torchvision/resnet18", classes=4, channels=5)
    x = torch.rand(2, 1, 32, 32)
    want = rgb.conv1(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.conv1(x), want)
    torch.testing.assert_close(five.conv1(x.expand(-1, 5, -1, -1)), want)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet2O", "got 'resnet2O'; near: .*resnet20"),
        ("vit_tiny_patch16_224", "timm/NAME"),
        ("torchvision/resnet51", "no classification model 'resnet51'; near: resnet50"),
        ("timm/vit_tny_patch16_224", "no model 'vit_tny_patch16_224'; near: vit_tiny_patch16_224"),
        ("torchvision/alexnet", "can't take a 3×32×32 image.*try another --image-size"),
        ("torchvision/maxvit_t", r"building it with num_classes=10, input_size=\(32, 32\) failed"),
        ("nowhere.py:net", "there is no file nowhere.py"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(name, classes=10)
    assert "\n" not in str(caught.value)


def test_without_timm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'repsim-robustness\[timm\]'"):
        build_model("timm/resnet18", classes=10)


USER_FILE = """
import torch
from torch import nn

def plain(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))

def sized(classes, image_size, channels, width=4):
    inputs = channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.Linear(width, classes))

def everything(**given):
    assert given == {"classes": 5, "channels": 3, "image_size": 8, "extra": 1}
    return plain(given["classes"])

class Net(nn.Sequential):
    def __init__(self, *, classes, channels):
        super().__init__(nn.Conv2d(channels, classes, 8), nn.Flatten())

built = plain(5)
fixed = lambda: plain(10)
number = 3
nothing = lambda: None
def broken():
    raise RuntimeError("two\\nlines")
def frozen(classes):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.LazyLinear(classes))
    net[1].eval()
    return net
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    return path


@pytest.mark.parametrize("name", ["plain", "sized", "Net", "built", "frozen"])
def test_a_user_s_model_gets_what_its_signature_accepts(user_file, name: str) -> None:
    model = build_model(f"{user_file}:{name}", classes=5, image_size=8)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def test_a_user_s_model_gets_arch_args(user_file) -> None:
    model = build_model(f"{user_file}:sized", classes=5, image_size=8, channels=1, width=9)
    assert [tuple(p.shape) for p in model.parameters()] == [(9, 64), (9,), (5, 9), (5,)]
    build_model(f"{user_file}:everything", classes=5, image_size=8, extra=1)


def test_checking_a_user_s_model_leaves_its_modes(user_file) -> None:
    model = build_model(f"{user_file}:frozen", classes=5, image_size=8)
    assert [module.training for module in model.modules()] == [True, True, False, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fixed", r"expects logits of shape \(batch, 5\).*it gave \(1, 10\)"),
        ("number", "got int"),
        ("nothing", "it gave NoneType"),
        ("broken", "RuntimeError: two lines"),
        ("plian", "has no 'plian'; near: plain"),
    ],
)
def test_a_user_s_model_that_is_none(user_file, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(f"{user_file}:{name}", classes=5, image_size=8)


def test_importing_models_does_not_import_optional_or_slow_packages() -> None:
    code = "import sys, repsim.models, repsim.hooks; print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
