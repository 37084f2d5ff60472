"""Checkpoints: plain containers and tensors, loaded in a way that cannot run code."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.files import replacing, sha256_of
from repsim.hooks import head_name
from repsim.models import MODELS, Normalized, build_model
from repsim.models.network import mlp
from repsim.registry import near, source_sha256

SCHEMA = 1
REQUIRED = ("schema", "state_dict", "arch", "arch_args", "classes", "channels", "image_size",
            "mean", "std", "head")  # fmt: skip
# Wrappers put these before every name: DataParallel and DDP, torch.compile, and what public
# training code calls the network.
PREFIXES = ("module.", "_orig_mod.", "encoder.", "model.", "backbone.", "net.", "network.")
# Where public training code keeps the weights inside its file.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be run, and what is known about it.

    Attributes:
        model: pixel model in eval mode, on the CPU.
        meta: the checkpoint's entries without weights; of a foreign one, what was given.
        sha256: of the file's bytes; of a network without a file, "untrained:ARCH:SEED".
        name: the file's stem, or the architecture.
        projector: features (batch, d) -> projections (batch, k), of a network that was trained
            with one; its weights lie apart from the encoder's and the head's.
    """

    model: Normalized
    meta: Mapping[str, Any]
    sha256: str
    name: str
    projector: nn.Sequential | None = None

    @property
    def content(self) -> str:
        """`sha256`, and where the architecture is the user's own the hash of its file too."""
        source = source_sha256(str(self.meta.get("arch", "")))
        return f"{self.sha256}:{source}" if source else self.sha256

    @property
    def data(self) -> str | None:
        """Name of the data set it was trained on, if known."""
        data = self.meta.get("data")
        return str(data["name"]) if data else None

    def require_head(self, what: str) -> None:
        """Refuse what needs logits where the checkpoint has a projector but no linear head.

        Raises:
            UserError: the checkpoint has no linear head.
        """
        if not self.meta["head"]:
            raise UserError(
                f"{what} goes end to end through a linear head; {self.name} (scheme "
                f"{self.meta.get('scheme')}) has none; train one first: repsim train --init "
                f"{self.name}.pt --protocol slf --out NAME.pt"
            )


def weights_sha256(model: nn.Module) -> str:
    """Of all parameters and buffers as they are in memory now."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        values = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name}:{values.dtype}".encode())
        found.update(values.view(torch.uint8).numpy())
    return found.hexdigest()


def save_checkpoint(path: str | Path, state_dict: Mapping[str, Tensor], **meta: Any) -> None:
    """Write a checkpoint beside and rename it.

    Args:
        path: the file.
        state_dict: the encoder's weights with bare names.
        meta: `REQUIRED` and any other plain values; an empty `head` says that the weights of
            the encoder's own head are left out; `projector`, where there is one, is
            {"state_dict": weights of `repsim.models.network.mlp`}.

    Raises:
        UserError: the folder cannot be written.
    """
    bare = {name: tensor.detach().cpu().clone() for name, tensor in state_dict.items()}
    with replacing(path) as beside:
        torch.save({"schema": SCHEMA, "state_dict": bare, **meta}, beside)


def read_plain(path: str | Path) -> Any:
    """The content of a `.pt` or `.safetensors` file; nothing in it can run code.

    Raises:
        UserError: no such file, cut short, not a checkpoint, or one that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: expected a safetensors file; it is not one or is cut short "
                            f"({error})") from error  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or path.read_bytes()[:1] == pickle.PROTO:
            raise UserError(
                f"{path}: refused, because it holds more than plain containers and tensors and "
                "loading it could run code; save its state_dict() with torch.save and load that"
            ) from error
        raise UserError(
            f"{path}: expected a checkpoint written by torch.save; it is not one"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: expected a checkpoint written by torch.save; the file is cut short or is "
            "not one; copy or download it again"
        ) from error


def load_model(
    source: str | Path,
    *,
    arch: str | None = None,
    classes: Sequence[str] | None = None,
    channels: int = 3,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> LoadedModel:
    """A network from a checkpoint of repsim's, a foreign state dict, or an architecture's name.

    Args:
        source: the file; or a name that `build_model` takes, for an untrained network.
        arch: architecture of a foreign state dict.
        classes, channels, image_size: of the data set; used where the file does not say.
        mean, std: normalisation of a foreign or untrained network; none by default.
        seed: initial weights of an untrained network.

    Returns:
        The network in eval mode.

    Raises:
        UserError: nothing of that name; a file that is cut short, not a checkpoint, would run
            code, or does not fit the architecture.
    """
    text = str(source)
    given = {"channels": channels, "image_size": image_size}
    if _is_name(text):
        torch.manual_seed(seed)
        names = list(classes) if classes is not None else [str(i) for i in range(10)]
        meta = {
            "arch": text,
            "arch_args": {},
            "classes": names,
            "seed": seed,
            "scheme": "untrained",
            "head": ["linear"],
            **given,
            **normalisation(mean, std, channels),
        }
        return _loaded(meta, None, f"untrained:{text}:{seed}", text.replace("/", "-"))
    path = Path(source)
    content = read_plain(path)
    if isinstance(content, dict) and "schema" in content and "arch" in content:
        meta = _check_own(path, content)
        if arch is not None and arch != meta["arch"]:
            raise UserError(f"{path}: --arch says {arch}; the checkpoint is a {meta['arch']}")
        loaded = _loaded(meta, content["state_dict"], sha256_of(path), path.stem)
        return replace(loaded, projector=_projector(path, content.get("projector")))
    state_dict = find_state_dict(path, content)
    if arch is None:
        raise UserError(
            f"{path}: a state dict that repsim did not write expects --arch; e.g. --arch resnet18 "
            "or --arch torchvision/resnet50"
        )
    if classes is None:
        raise UserError(f"{path}: a foreign state dict expects --data, to know the classes")
    meta = {
        "arch": arch,
        "arch_args": {},
        "classes": list(classes),
        "scheme": "foreign",
        "head": ["linear"],
        **given,
        **normalisation(mean, std, channels),
    }
    return _loaded(meta, state_dict, sha256_of(path), path.stem)


def _is_name(text: str) -> bool:
    if Path(text).is_file():
        return False
    known = text in MODELS or text.startswith(("torchvision/", "timm/")) or ":" in text
    if not known and not text.endswith((".pt", ".pth", ".safetensors", ".ckpt", ".tar", ".bin")):
        raise UserError(
            f"--model expects a checkpoint's file or an architecture; {text!r} is neither; near: "
            f"{near(text, MODELS)}"
        )
    return known


def normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> dict[str, list[float]]:
    """`mean` and `std` with a number a channel; zeros and ones where none are given.

    Raises:
        UserError: as many numbers as there are not channels, or a deviation not above 0.
    """
    values = {"mean": list(mean or [0.0]), "std": list(std or [1.0])}
    for name, numbers in values.items():
        if len(numbers) not in (1, channels):
            wanted = "1 number" if channels == 1 else f"1 or {channels} numbers"
            raise UserError(f"--{name} expects {wanted}, one a channel; got {len(numbers)}")
        if len(numbers) == 1:
            values[name] = numbers * channels
    if not min(values["std"]) > 0:
        raise UserError(f"--std expects numbers above 0; got {min(values['std']):g}")
    return values


def _check_own(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    if content["schema"] != SCHEMA:
        raise UserError(
            f"{path}: expected a checkpoint of schema {SCHEMA}; got {content['schema']}, written "
            f"by repsim {content.get('repsim_version')}; use that version"
        )
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise UserError(f"{path}: expected the entries {', '.join(missing)}; they are missing")
    return {k: v for k, v in content.items() if k not in ("state_dict", "projector")}


def find_state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The weights in what `read_plain` returned for a foreign file, with bare names.

    Raises:
        UserError: no named tensors in it.
    """
    found = content
    for key in CONTAINERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{path}: expected a checkpoint; got {type(found).__name__} without weights"
        )
    tensors = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise UserError(
            f"{path}: expected a checkpoint with named tensors; got the entries "
            f"{', '.join(map(str, list(found)[:5]))}"
        )
    return strip_prefixes(tensors)


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bare names: without what DataParallel, torch.compile and wrappers put before all of them."""
    bare = dict(state_dict)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in bare)), None):
        bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items()}
    return bare


def _loaded(
    meta: dict[str, Any], state_dict: Mapping[str, Tensor] | None, sha256: str, name: str
) -> LoadedModel:
    encoder = build_model(
        meta["arch"],
        classes=len(meta["classes"]),
        channels=meta["channels"],
        image_size=meta["image_size"],
        **meta["arch_args"],
    )
    model = Normalized(encoder, meta["mean"], meta["std"]).eval()
    if state_dict is not None:
        if not meta["head"]:
            state_dict = {**_untrained_head(model, meta), **state_dict}
        _fit(encoder, state_dict, name, meta["arch"])
    return LoadedModel(model, meta, sha256, name)


def _untrained_head(model: Normalized, meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Zeros for the head that a checkpoint of an encoder alone leaves out."""
    size = meta["image_size"]
    head = head_name(model, torch.zeros(1, meta["channels"], size, size))
    own = model.encoder.state_dict()
    return {k: torch.zeros_like(v) for k, v in own.items() if head and k.startswith(f"{head}.")}


def _projector(path: Path, saved: Any) -> nn.Sequential | None:
    if saved is None:
        return None
    weights = saved.get("state_dict") if isinstance(saved, Mapping) else None
    if not isinstance(weights, Mapping):
        raise UserError(f"{path}: expected a projector with its weights; got {type(saved)}")
    matrices = [w for w in weights.values() if isinstance(w, torch.Tensor) and w.dim() == 2]
    try:
        projector = mlp([matrices[0].shape[1], *(len(w) for w in matrices)])
        projector.load_state_dict(dict(weights))
    except (IndexError, RuntimeError) as error:
        raise UserError(
            f"{path}: the projector's weights are expected to be those of linear layers with ReLU "
            "between them; they are not"
        ) from error
    return projector.eval()


def _fit(encoder: nn.Module, state_dict: Mapping[str, Tensor], name: str, arch: str) -> None:
    """Load weights; every name and shape has to fit."""
    wanted = encoder.state_dict()
    missing = [k for k in wanted if k not in state_dict and not k.endswith("num_batches_tracked")]
    extra = [k for k in state_dict if k not in wanted]
    shapes = [k for k in wanted if k in state_dict and wanted[k].shape != state_dict[k].shape]
    if missing or extra or shapes:
        said = [
            f"{what} {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            for what, keys in (("lacks", missing), ("has besides", extra))
            if keys
        ]
        said += [
            f"{k} is {tuple(state_dict[k].shape)} instead of {tuple(wanted[k].shape)}"
            for k in shapes[:1]
        ]
        raise UserError(
            f"{name}: the weights are expected to fit {arch}; the file {'; '.join(said)}; try "
            "another --arch"
        )
    encoder.load_state_dict(dict(state_dict), strict=False)
    for key, value in encoder.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{name}: weights are expected to be finite; {key} has NaN or inf")
