"""One set of attacked images for all networks, made once.

The attack is on the mean of the softmax of several networks: its cross-entropy weighs each network
by the probability that it still gives to the true class, so that none of them is attacked alone and
those that are fooled already count no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from repsim.attacks import AttackSpec, run_attack
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, batches
from repsim.errors import UserError
from repsim.files import replacing
from repsim.progress import Progress
from repsim.runtime import Runtime
from repsim.store import match_rows

SHARED = "shared"


class Mixture(nn.Module):
    """The log of the mean softmax of several networks.

    Args:
        models: pixel models of the same classes.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> log probabilities (batch, classes)."""
        found = [model(images).float().log_softmax(1) for model in self.models]
        return torch.stack(found).logsumexp(0) - float(np.log(len(found)))


def make_shared(
    networks: Sequence[LoadedModel],
    data: ImageData,
    spec: AttackSpec,
    path: Path,
    *,
    batch_size: int,
    runtime: Runtime,
    seed: int,
    progress: Progress,
) -> None:
    """Attack the mixture of the networks at full strength and write the images.

    Args:
        networks: of the mixture.
        data: the images.
        spec: the attack; it names no files.
        path: HDF5: `inputs` (n, c, h, w) float32, `ids` (n,), attributes `attack` and `networks`.
        batch_size: images at once; changes no number.
        runtime: device, precision, layout.
        seed: of the attack's draws.
        progress: told of every batch.

    Raises:
        UserError: an attack that needs files, or a network without a head.
    """
    if spec.files:
        raise UserError(f"the shared attack is made on the mixture of networks; got {spec.text}")
    for loaded in networks:
        loaded.require_head("the shared attack")
    model = Mixture([runtime.place(loaded.model) for loaded in networks]).eval()
    parts = []
    with progress.task("shared attack", len(data), unit="img") as task:
        for images, labels, keys in batches(data, batch_size, runtime.device):
            with runtime.autocast():
                attacked = run_attack(
                    spec, model, runtime.images(images), labels, ids=keys, seed=seed,
                    mode="represent",
                )  # fmt: skip
            parts.append(attacked.float().cpu().contiguous())
            task.advance(len(labels))
    with replacing(path) as beside, h5py.File(beside, "w") as file:
        file["inputs"] = torch.cat(parts).numpy()
        file["ids"] = data.ids
        file.attrs["attack"] = json.dumps(spec.to_json())
        file.attrs["networks"] = json.dumps({one.name: one.sha256 for one in networks})


def shared_attack(path: Path) -> AttackSpec:
    """The images of `make_shared` as an attack, which looks them up by their ids.

    Raises:
        UserError: images that are not among them.
    """
    with h5py.File(path) as file:
        inputs = torch.from_numpy(file["inputs"][:])
        known = file["ids"][:]
        attack: dict[str, Any] = json.loads(file.attrs["attack"])
        networks = json.loads(file.attrs["networks"])

    def look_up(
        model: nn.Module, images: Tensor, labels: Tensor, *, ids: Tensor, **settings: Any
    ) -> Tensor:
        rows = match_rows(ids.cpu().numpy().view(np.uint64), known)
        if missing := int((rows < 0).sum()):
            raise UserError(
                f"the shared attacked images are of {len(known)} images; {missing} others are "
                "asked for"
            )
        return inputs[torch.from_numpy(rows)].to(images)

    digest = hashlib.sha256(inputs.numpy().tobytes()).hexdigest()
    origin = {"made_on": networks, "attack": attack, "inputs_sha256": digest}
    params = {key: attack["params"].get(key) for key in ("eps", "norm")}
    return AttackSpec(SHARED, SHARED, params, look_up, origin=origin, fixed=True)
