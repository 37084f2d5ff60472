"""Whether training and test images, stores and layers belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repsim.attacks import AttackSpec
from repsim.errors import UserError
from repsim.probe.reduce import Reduction, choose_reduction
from repsim.probe.settings import Settings
from repsim.probe.source import not_as_many, stored_shape
from repsim.store import Store

# Of the test images that many may be training images, too; they are left out.
MOST_SHARED = 0.01


def check_splits(
    train: Tensor, test: Tensor, train_ids: np.ndarray, test_ids: np.ndarray, notes: list[str]
) -> Tensor:
    """Refuse splits that no probe can be trained and tested on.

    Args:
        train, test: int64 labels.
        train_ids, test_ids: uint64, of the images.
        notes: gets what the user should know.

    Returns:
        int64 rows of the test images that are not among the training images.

    Raises:
        UserError: fewer than two classes or images, labels that training does not know, or more
            than `MOST_SHARED` of the test images in training.
    """
    known = train.unique()
    if len(known) < 2 or len(test) == 0 or len(train) < 2 * len(known):
        raise UserError(
            "a probe expects training images of two classes at least, two of each on average, and "
            f"test images; got {len(train)} of {len(known)} classes, and {len(test)}"
        )
    seen = torch.from_numpy(np.isin(test_ids, train_ids))
    if int(seen.sum()) > MOST_SHARED * len(test):
        raise UserError(
            f"probes expect test images that they were not trained on; {int(seen.sum())} of "
            f"{len(test)} are in the training split; give another --split or store"
        )
    if bool(seen.any()):
        notes.append(
            f"{int(seen.sum())} of {len(test)} test images are in the training split, too; they "
            "are left out of the tests"
        )
    kept = torch.nonzero(~seen)[:, 0]
    if missing := int((~torch.isin(test[kept], known)).sum()):
        notes.append(f"{missing} of {len(kept)} test images are of classes without training images")
    return kept


def check_stores(train: Store, test: Store) -> None:
    """Refuse stores that are not two splits of one network's images.

    Raises:
        UserError: another network, other layers or classes, or the same split.
    """
    if train.model["sha256"] != test.model["sha256"]:
        raise not_as_many("network", train.model["name"], test.model["name"])
    if train.layers != test.layers:
        raise not_as_many("layers", len(train.layers), len(test.layers))
    splits = [f"{store.data['name']}/{store.data['split']}" for store in (train, test)]
    if splits[0] == splits[1]:
        raise UserError(
            f"--train and --test expect stores of two splits; both are of {splits[0]}; make that "
            "of the training images: repsim extract --split train --out train.h5"
        )
    classes = [list(store.data["classes"]) for store in (train, test)]
    if classes[0] != classes[1]:
        raise not_as_many("classes", *(f"{len(names)}: {names[:4]}" for names in classes))


def check_attacks(train: Store, test: Store, conditions: Iterable[str]) -> None:
    """Refuse to train on one attack and test on another of the same name.

    Args:
        train, test: stores.
        conditions: that probes are trained on.

    Raises:
        UserError: names the condition and the settings that differ.
    """
    for name in conditions:
        if name not in test.conditions:
            continue
        if different := _differences(train.attack(name), test.attack(name)):
            raise UserError(
                f"condition {name} of --train and --test expects one attack; they differ: "
                f"{different}; name one of them apart with as=NAME and extract again"
            )


def other_attacks(store: Store, specs: Sequence[AttackSpec]) -> list[str]:
    """What to say where attacks on the probes differ from the store's of the same name."""
    found = []
    for spec in specs:
        if spec.condition not in store.conditions:
            continue
        if different := _differences(store.attack(spec.condition), spec.to_json()):
            found.append(
                f"{spec.condition} (adaptive) is not the attack that made the store's "
                f"{spec.condition} (transfer): {different}"
            )
    return found


def _differences(one: Any, other: Any) -> str:
    """`eps 0.0314 and 0.0627, steps 10 and 20` of two attacks, the first few."""
    mine, theirs = _flat(one), _flat(other)
    return ", ".join([
        f"{key} {mine.get(key)} and {theirs.get(key)}"
        for key in {**mine, **theirs}
        if mine.get(key) != theirs.get(key)
    ][:3])  # fmt: skip


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The innermost entries of nested dictionaries, by dotted names."""
    if not isinstance(value, Mapping):
        return {name.removeprefix("params."): value}
    start = f"{name}." if name else ""
    return {k: v for key, one in value.items() for k, v in _flat(one, f"{start}{key}").items()}


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


def require_whole(store: Store, names: Iterable[str]) -> None:
    """An adaptive attack needs the layer as it is, which a reduced store does not have.

    Raises:
        UserError: names the layer.
    """
    for name in names:
        layer = store.representation("clean", name)
        whole = int(np.prod(layer.shape))
        if layer.features != whole:
            raise UserError(
                f"--adaptive expects whole layers; the store has layer {name} reduced to "
                f"{layer.features} of {whole} values; extract with --reduce flatten, or probe "
                "live: repsim probe --model CHECKPOINT"
            )
