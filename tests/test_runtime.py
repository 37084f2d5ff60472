"""Device, precision and layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repsim.errors import UserError
from repsim.runtime import Runtime


def test_defaults_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Runtime.of(training=True) == Runtime("cpu", "float32", True)
    assert Runtime.of(channels_last=False).channels_last is False
    assert Runtime.of("cpu", "bf16").precision == "bf16"
    with pytest.raises(UserError, match="--device cuda: this torch sees no GPU; try --device cpu"):
        Runtime.of("cuda")


def test_defaults_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Runtime.of(training=True) == Runtime("cuda", "bf16", True)
    assert Runtime.of().precision == "float32"  # measurements, unless asked
    assert Runtime.of("cuda:1").device == "cuda:1"
    for device in ("cuda:2", "cuda:x", "cudaa"):
        with pytest.raises(UserError, match="--device expects"):
            Runtime.of(device)


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [("gpu", "auto", "--device expects auto, cpu or cuda; got 'gpu'"),
     ("cpu", "fp16", "--precision expects one of auto, float32, bf16; got 'fp16'")],
)  # fmt: skip
def test_unknown_choices(device: str, precision: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Runtime.of(device, precision)


@pytest.mark.parametrize("channels_last", [False, True])
def test_models_and_images_share_a_layout(channels_last: bool) -> None:
    runtime = Runtime("cpu", "float32", channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    other = torch.contiguous_format if channels_last else torch.channels_last
    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=other)
    placed = runtime.images(x)
    assert placed.is_contiguous(memory_format=layout)
    assert torch.equal(placed, x)
    model = runtime.place(nn.Conv2d(3, 4, 3))
    assert model.weight.is_contiguous(memory_format=layout)


def test_autocast_is_bf16_or_nothing() -> None:
    model, x = nn.Linear(4, 4), torch.rand(2, 4)
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        with Runtime("cpu", precision, False).autocast():
            assert model(x).dtype == dtype
        assert model(x).dtype == torch.float32
