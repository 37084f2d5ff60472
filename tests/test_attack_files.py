"""Files that an attack names: surrogates and probes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from repsim.attack_files import bind
from repsim.attacks import parse_attack, pgd, probe, run_attack
from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, draw, to_float
from repsim.errors import UserError
from repsim.evaluate import evaluate
from repsim.runtime import Runtime

EPS = 0.15
CPU = Runtime.of("cpu")


@pytest.fixture(scope="module")
def few(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 60)


def test_a_transfer_attack_is_the_surrogates_at_full_strength(
    loaded: LoadedModel, checkpoints: dict[str, Path], few: ImageData
) -> None:
    spec = bind(parse_attack(f"pgd,steps=4,surrogate={checkpoints['at']}", eps=EPS), loaded, CPU)
    surrogate = load_model(checkpoints["at"])
    x = to_float(few.images)
    wanted = pgd(surrogate.model, x, few.labels, eps=EPS, steps=4, ids=few.keys)
    for mode in ("represent", "evaluate"):
        found = run_attack(
            spec, loaded.model, x, few.labels, ids=few.keys, seed=0, mode=mode, record={}
        )
        torch.testing.assert_close(found, wanted)
    # The verdict is the network's own.
    result = evaluate(loaded, few, [spec])
    with torch.no_grad():
        right = (loaded.model(x).argmax(1) == few.labels) & (
            loaded.model(wanted).argmax(1) == few.labels
        )
    assert (result.found["pgd"].lost == ~right.numpy()).all()
    record = spec.to_json()["surrogate"]
    assert record == {"name": "at", "sha256": surrogate.sha256}
    assert str(checkpoints["at"]) not in str(spec.to_json())  # never a path


def test_attacks_without_files_stay_as_they_are(loaded: LoadedModel) -> None:
    spec = parse_attack("pgd", eps=EPS)
    assert bind(spec, loaded, CPU) is spec


def test_a_surrogate_that_does_not_fit(
    loaded: LoadedModel, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"there is no such file|neither"):
        bind(parse_attack(f"pgd,surrogate={tmp_path}/none.pt", eps=EPS), loaded, CPU)
    spec = parse_attack(f"pgd,surrogate={checkpoints['at']}", eps=EPS)
    larger = replace(loaded, meta={**loaded.meta, "image_size": 32})
    with pytest.raises(UserError, match="expects the image_size of st, 32; it has 8"):
        bind(spec, larger, CPU)
    more = replace(loaded, meta={**loaded.meta, "classes": [str(i) for i in range(11)]})
    with pytest.raises(UserError, match="expects the classes of st, 11; it has 10"):
        bind(spec, more, CPU)


def test_a_probe_from_its_file(loaded: LoadedModel, few: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {"weight": torch.randn(10, 64), "bias": torch.randn(10)}
    path = tmp_path / "probe.pt"
    torch.save(weights, path)
    text = f"probe,layer=avgpool,steps=3,weights={path}"
    spec = bind(parse_attack(text, eps=EPS), loaded, CPU)
    x = to_float(few.images)
    found = run_attack(spec, loaded.model, x, few.labels, ids=few.keys, seed=0)
    wanted = probe(
        loaded.model, x, few.labels, layer="avgpool", steps=3, eps=EPS, ids=few.keys, **weights
    )
    torch.testing.assert_close(found, wanted)
    assert spec.to_json()["weights"]["name"] == "probe.pt"
    for content in ({"weight": torch.randn(10)}, [1], {"weight": torch.randn(3, 4), "bias": 1}):
        torch.save(content, path)
        with pytest.raises(UserError, match=r"tensors weight \(classes, features\) and bias"):
            bind(parse_attack(text, eps=EPS), loaded, CPU)
