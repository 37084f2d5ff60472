from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from repsim.checkpoint import load_model, read_plain, strip_prefixes
from repsim.data import ImageData, to_float
from repsim.errors import UserError
from repsim.models import build_model

CLASSES = [str(i) for i in range(10)]


def foreign(path: Path, **wrap: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    weights = build_model("resnet8", classes=10, channels=3).state_dict()
    torch.save({**wrap, "state_dict": weights} if wrap else weights, path)
    return weights


class Malicious:
    """Unpickling this would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_checkpoint_holds_only_what_weights_only_loads(checkpoints: dict[str, Path]) -> None:
    content = torch.load(checkpoints["at"], weights_only=True)
    assert content["scheme"] == "sl"
    assert content["scenario"] == "at"
    assert content["head"] == ["linear"]
    assert content["attack"]["params"]["eps"] == 0.15
    assert content["data"]["name"] == "digits"
    assert len(content["history"]) == 8
    assert content["seed"] == 0
    assert all(
        not k.startswith(("module.", "encoder.", "_orig_mod.")) for k in content["state_dict"]
    )
    assert "mean" not in content["state_dict"]
    assert str(checkpoints["at"].parent) not in str(content)  # a name, never a path


def test_loading_gives_the_trained_network(
    checkpoints: dict[str, Path], digits_test: ImageData
) -> None:
    loaded = load_model(checkpoints["st"])
    with torch.no_grad():
        logits = loaded.model(to_float(digits_test.images))
    assert not loaded.model.training
    assert (logits.argmax(1) == digits_test.labels).float().mean() > 0.8
    assert loaded.name == "st"
    assert loaded.data == "digits"
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated(checkpoints: dict[str, Path], tmp_path: Path, kept: float) -> None:
    whole = checkpoints["st"].read_bytes()
    short = tmp_path / "short.pt"
    short.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UserError, match="cut short"):
        load_model(short)


@pytest.mark.parametrize("content", [b"hello", b"\x89HDF\r\n\x1a\n" + b"\0" * 100, b"{}"])
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected a checkpoint"):
        load_model(path)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "made"
    if legacy:
        path.write_bytes(pickle.dumps(Malicious(target)))
    else:
        torch.save({"state_dict": Malicious(target)}, path)
    with pytest.raises(UserError, match="run code"):
        load_model(path)
    assert not target.exists()


def test_a_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "archive.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(UserError, match="expected a checkpoint"):
        load_model(path)


def test_missing_file_and_misspelt_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"near: .*resnet20"):
        load_model("resnet21")


def test_another_architecture(tmp_path: Path) -> None:
    foreign(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"lacks layer1\.1\.conv1\.weight and \d+ more"):
        load_model(tmp_path / "weights.pth", arch="resnet20", classes=CLASSES)
    with pytest.raises(UserError, match=r"linear\.weight is \(10, 64\) instead of \(7, 64\)"):
        load_model(tmp_path / "weights.pth", arch="resnet8", classes=CLASSES[:7])
    with pytest.raises(UserError, match="expects --arch"):
        load_model(tmp_path / "weights.pth", classes=CLASSES)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "module.encoder.", "model."]
)
@pytest.mark.parametrize("nested", [False, True])
def test_foreign_weights_load_whatever_wraps_them(
    tmp_path: Path, prefix: str, nested: bool
) -> None:
    weights = foreign(tmp_path / "plain.pth")
    named = {prefix + k: v for k, v in weights.items()}
    path = tmp_path / "wrapped.pth"
    torch.save({"epoch": 3, "state_dict": named} if nested else named, path)
    loaded = load_model(path, arch="resnet8", classes=CLASSES, mean=[0.5], std=[0.2, 0.3, 0.4])
    found = loaded.model.encoder.state_dict()
    assert all(torch.equal(found[k], weights[k]) for k in weights)
    assert loaded.meta["mean"] == [0.5] * 3


def test_safetensors(tmp_path: Path) -> None:
    weights = foreign(tmp_path / "plain.pth")
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    loaded = load_model(path, arch="resnet8", classes=CLASSES)
    assert torch.equal(loaded.model.encoder.linear.weight, weights["linear.weight"])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="safetensors"):
        load_model(path, arch="resnet8", classes=CLASSES)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    weights = foreign(tmp_path / "plain.pth")
    weights["linear.bias"][3] = float("nan")
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"linear\.bias has NaN"):
        load_model(tmp_path / "nan.pth", arch="resnet8", classes=CLASSES)


def test_an_older_schema(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    content = torch.load(checkpoints["st"], weights_only=True)
    torch.save({**content, "schema": 0}, tmp_path / "old.pt")
    with pytest.raises(UserError, match="schema 1; got 0"):
        load_model(tmp_path / "old.pt")


def test_a_checkpoint_without_a_linear_head(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    content = torch.load(checkpoints["st"], weights_only=True)
    torch.save({**content, "head": [], "scheme": "cl"}, tmp_path / "cl.pt")
    with pytest.raises(UserError, match="train one first: repsim train"):
        load_model(tmp_path / "cl.pt").require_head("an attack")


def test_untrained_networks_follow_the_seed() -> None:
    same = [load_model("resnet8", classes=CLASSES, seed=3).model.encoder for _ in range(2)]
    other = load_model("resnet8", classes=CLASSES, seed=4)
    assert torch.equal(same[0].conv1.weight, same[1].conv1.weight)
    assert not torch.equal(same[0].conv1.weight, other.model.encoder.conv1.weight)
    assert other.sha256 == "untrained:resnet8:4"


def test_normalisation_of_wrong_length(tmp_path: Path) -> None:
    foreign(tmp_path / "plain.pth")
    with pytest.raises(UserError, match="--mean expects 1 or 3"):
        load_model(tmp_path / "plain.pth", arch="resnet8", classes=CLASSES, mean=[0.1, 0.2])
    with pytest.raises(UserError, match="--std expects numbers above 0"):
        load_model(tmp_path / "plain.pth", arch="resnet8", classes=CLASSES, std=[0.0])


def test_strip_prefixes_leaves_a_common_first_part_that_is_no_wrapper() -> None:
    weights = {"model.layer.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert list(strip_prefixes(weights)) == list(weights)


def test_read_plain_of_a_tensor(tmp_path: Path) -> None:
    torch.save(torch.arange(3), tmp_path / "tensor.pt")
    assert read_plain(tmp_path / "tensor.pt").tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="expected a checkpoint; got Tensor"):
        load_model(tmp_path / "tensor.pt", arch="resnet8", classes=CLASSES)
