"""What is refused before anything is trained: memory, above all of the larger presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from study_small import carry_on, preset, ready

from repsim.data import ImageData
from repsim.errors import UserError
from repsim.live import api
from repsim.study import check
from repsim.study.check import check_layers, check_memory, plan_comparison
from repsim.study.measure import _grams
from repsim.study.networks import preset_networks
from repsim.study.settings import load_preset
from repsim.study.study import Study


@pytest.mark.parametrize(("name", "size", "classes"), [("gpu", 32, 10), ("paper", 32, 100)])
def test_the_large_presets_fit_their_memory(name: str, size: int, classes: int) -> None:
    """Without their data, which has only to have their shape."""
    settings = load_preset(name)
    labels = torch.arange(8) % classes
    study = Study(None, settings, preset_networks(settings))  # type: ignore[arg-type]
    study.__dict__["test_images"] = ImageData(
        torch.zeros(8, 3, size, size, dtype=torch.uint8), labels,
        tuple(map(str, range(classes))), settings.data, "test", torch.arange(8),
    )  # fmt: skip
    layers, _ = check_layers(study)
    assert {len(some) for some in layers.values()} == {10 if name == "gpu" else 18}
    with pytest.raises(UserError, match=r"within classes takes all images at once: over"):
        check_memory(replace(settings.compare, memory=2**30), 2000, layers, 4)


def test_the_plan_is_that_of_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers, conditions and networks are counted as a live comparison counts them."""
    prepared = ready(tmp_path / "study", preset(tmp_path))
    layers, _ = check_layers(prepared.study)
    asked: list[Any] = []

    def watched(*given: Any) -> object:
        asked.append(given)
        raise UserError("enough")

    monkeypatch.setattr(api, "plan_batches", watched)
    monkeypatch.setattr(check, "plan_batches", lambda *given: asked.append(given))
    prepared = replace(prepared, names=[n for n in prepared.names if n.startswith("train")])
    carry_on(prepared)
    carry_on(replace(prepared, names=["shared"]))
    with pytest.raises(UserError, match="enough"):
        _grams(prepared.study, prepared.study.test(50))
    plan_comparison(prepared.study.settings.compare, 50, layers, 4)
    real, ours = ([*given[:2], sum(given[2]), *given[3:]] for given in asked)
    assert real == ours
