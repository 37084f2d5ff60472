"""Whether training and test images belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.probe.reduce import Reduction, choose_reduction
from repsim.probe.settings import Settings
from repsim.probe.source import not_as_many, stored_shape
from repsim.store import Store


def check_splits(
    train: Tensor, test: Tensor, train_ids: np.ndarray, test_ids: np.ndarray, notes: list[str]
) -> None:
    """Refuse splits that no probe can be trained and tested on.

    Raises:
        UserError: fewer than two classes or images, labels that training does not know, or the
            same images.
    """
    known = train.unique()
    if len(known) < 2 or len(test) == 0 or len(train) < 2 * len(known):
        raise UserError(
            "a probe expects training images of two classes at least, two of each on average, and "
            f"test images; got {len(train)} of {len(known)} classes, and {len(test)}"
        )
    shared = int(np.isin(test_ids, train_ids).sum())
    if 2 * shared > len(test):
        raise UserError(
            f"probes expect test images that they were not trained on; {shared} of {len(test)} "
            "are in the training split; give another --split or store"
        )
    if shared:
        notes.append(f"{shared} of {len(test)} test images are also in the training split")
    if missing := int((~torch.isin(test, known)).sum()):
        notes.append(f"{missing} of {len(test)} test images are of classes without training images")


def stored_reductions(
    train: Store, test: Store, layers: str | Sequence[str] | None, settings: Settings
) -> dict[str, Reduction]:
    """What probes see of the layers of two stores that fit the names or patterns.

    Raises:
        UserError: a pattern that fits none, or layers that the stores have reduced differently.
    """
    wanted = [layers] if isinstance(layers, str) else list(layers or ["*"])
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in train.layers):
            raise UserError(
                f"--layers expects names or patterns of the stores' {len(train.layers)} layers; "
                f"none fits {pattern!r}"
            )
    found = {}
    for name in train.layers:
        if not any(fnmatchcase(name, pattern) for pattern in wanted):
            continue
        one, other = (store.representation("clean", name) for store in (train, test))
        shapes = [stored_shape(layer.shape, layer.features) for layer in (one, other)]
        if shapes[0] != shapes[1]:
            raise not_as_many(f"reduction of layer {name}", shapes[0], shapes[1])
        found[name] = choose_reduction(settings.reduce, shapes[0], settings.most)
    return found


def require_whole(store: Store, reductions: Mapping[str, Reduction]) -> None:
    """An adaptive attack needs the layer as it is, which a reduced store does not have."""
    for name, reduction in reductions.items():
        layer = store.representation("clean", name)
        if layer.features != int(np.prod(layer.shape)):
            raise UserError(
                f"--adaptive expects whole layers; the store has layer {name} reduced to "
                f"{reduction.features} of {int(np.prod(layer.shape))} values; extract with "
                "--reduce flatten, or probe live: repsim probe --model CHECKPOINT"
            )
