"""Two processes share the batches of a live comparison, or its passes."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import found

from repsim.attacks import parse_attack
from repsim.checkpoint import load_model
from repsim.data import draw, load_data
from repsim.distributed import barrier, world
from repsim.errors import UserError
from repsim.live import GramCache, LiveReport, compare_models

WAYS: dict[str, dict[str, Any]] = {
    "minibatch": {"estimator": "minibatch", "batch_size": 16},
    "debiased": {"estimator": "debiased", "batch_size": 32},
}


def compared(way: str, folder: str | None) -> LiveReport:
    data = draw(load_data("digits", "test"), 70)
    networks = [
        replace(load_model("resnet8", classes=data.classes, channels=1, image_size=8, seed=seed),
                name=f"net{seed}", sha256=f"untrained:resnet8:{seed}")
        for seed in (0, 1)
    ]  # fmt: skip
    # The second attack is of the images of a batch on one another.
    texts = ("pgd,steps=2", "instance,steps=2") if way == "minibatch" else ("pgd,steps=2",)
    specs = [[parse_attack(text, eps=0.15) for text in texts]] * 2
    return compare_models(networks, data, specs, cache=GramCache(folder), **WAYS[way])


def work() -> dict[str, Any]:
    """What each of two ranks runs."""
    # A folder that both ranks know and no other pair of processes has.
    shared = Path(tempfile.gettempdir(), f"repsim-live-{os.environ['MASTER_PORT']}")
    results: dict[str, Any] = {}
    for way in WAYS:
        live = compared(way, str(shared / way))
        accuracy = live.accuracy(("net1", "pgd"))
        results[way] = {
            "value": torch.from_numpy(live.everything.pairs.value),
            "accuracy": accuracy, "made": live.made,
        }  # fmt: skip
    try:
        compared("debiased", None)
    except UserError as error:
        results["refused"] = str(error)
    barrier()
    shutil.rmtree(shared, ignore_errors=True)
    return results


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_are_one_process(way: str) -> None:
    assert world() == 1
    wanted = compared(way, None)
    ranks = [rank[way] for rank in found("test_live_ranks")]
    for rank in ranks:
        np.testing.assert_allclose(rank["value"], wanted.everything.pairs.value, atol=1e-6)
        assert rank["accuracy"] == wanted.accuracy(("net1", "pgd"))
        assert 0 < rank["made"] < wanted.made
    assert sum(rank["made"] for rank in ranks) == wanted.made


def test_shared_gram_matrices_need_a_cache() -> None:
    assert all("expect a --cache" in rank["refused"] for rank in found("test_live_ranks"))
