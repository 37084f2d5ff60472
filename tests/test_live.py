"""The live comparison: what extraction and comparison give, without the activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from similarity_reference import minibatch_cka
from torch import nn

from repsim.attacks import parse_attack
from repsim.checkpoint import LoadedModel, load_model
from repsim.compare import compare_all
from repsim.data import ImageData, draw
from repsim.errors import UserError
from repsim.extract import extract
from repsim.live import GramCache, LiveReport, compare_models, plan_batches
from repsim.similarity import ArrayRepresentation, cka_pairs
from repsim.store import open_store

SPEC = parse_attack("pgd,steps=3", eps=0.15)


@pytest.fixture
def networks(checkpoints: dict[str, Path]) -> list[LoadedModel]:
    return [load_model(checkpoints["st"]), load_model(checkpoints["at"])]


@pytest.fixture(scope="module")
def few(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 70)


def run(networks: list[LoadedModel], data: ImageData, **options: object) -> LiveReport:
    attacks = [[SPEC]] * len(networks)
    return compare_models(networks, data, attacks, **options)  # type: ignore[arg-type]


def stored(networks: list[LoadedModel], data: ImageData, folder: Path, layers: str) -> dict:
    """The same layers from stores, in float32: activations by (network, condition, layer)."""
    found = {}
    for one in networks:
        path = folder / f"{one.name}.h5"
        extract(one, data, [SPEC], path, layers=layers, dtype="float32")
        with open_store(path) as store:
            for condition in store.conditions:
                for layer in store.representations(condition):
                    found[one.name, condition, layer.layer] = layer.rows(0, layer.samples)
    return found


@pytest.mark.parametrize("batch_size", [128, 32])
def test_all_samples_at_once_is_what_stores_give(
    networks: list[LoadedModel], few: ImageData, tmp_path: Path, batch_size: int
) -> None:
    """With a batch of all images (products in the hooks) and in parts (activations held)."""
    live = run(networks, few, batch_size=batch_size, layers="all")
    assert live.estimator == "debiased"
    rows = stored(networks, few, tmp_path, "all")
    keys = live.everything.keys
    assert set(keys) == set(rows)
    wanted = compare_all(
        [ArrayRepresentation(rows[k], layer=k[2], condition=k[1], model=k[0]) for k in keys]
    )
    np.testing.assert_allclose(live.everything.pairs.value, wanted.pairs.value, atol=3e-6)
    for name in ("st", "at"):
        found = live.everything.alignment((name, "clean"), (name, "pgd"))
        expected = wanted.alignment((name, "clean"), (name, "pgd"))
        assert found["alignment_mean"] == pytest.approx(expected["alignment_mean"], abs=1e-6)
        assert found["alignment_mean_ci"] == pytest.approx(expected["alignment_mean_ci"], abs=1e-4)
        with open_store(tmp_path / f"{name}.h5") as store:
            assert live.accuracy((name, "pgd")) == tuple(store.accuracy("pgd"))
            assert live.accuracy((name, "clean")) == tuple(store.accuracy("clean"))
    assert live.kinds == {"clean": "clean", "noise": "control", "pgd": "attack"}


def test_batches_are_the_minibatch_estimator(
    networks: list[LoadedModel], few: ImageData, tmp_path: Path
) -> None:
    live = run(networks, few, batch_size=16, estimator="minibatch")
    assert live.everything.samples == 64
    assert any("the last 6 of 70 samples" in note for note in live.notes)
    rows = stored(networks, few, tmp_path, "blocks")
    keys = live.everything.keys
    for i, j in [(0, 0), (0, 3), (2, 7), (5, len(keys) - 1), (len(keys) - 2, 1)]:
        wanted = minibatch_cka(rows[keys[i]], rows[keys[j]], 16)
        assert live.everything.pairs.value[i, j] == pytest.approx(wanted, abs=5e-6)
    attributes = live.everything.pairs.attributes
    assert (attributes["estimator"], attributes["batch_size"]) == ("minibatch", 16)
    assert live.everything.pairs.replicates is not None
    assert live.everything.pairs.replicates.shape[0] == 4
    # Of images that fill no batch nothing is claimed.
    right = live.accuracy(("st", "clean"))
    assert right is not None
    assert right[1] == 64


def test_the_memory_decides(networks: list[LoadedModel], few: ImageData) -> None:
    live = run(networks, few, batch_size=16, memory=200_000)
    assert live.estimator == "minibatch"
    assert "--memory" in live.notes[0]
    with pytest.raises(UserError, match=r"debiased estimator over all 70 samples needs .*--memory"):
        run(networks, few, batch_size=16, memory=200_000, estimator="debiased")
    assert run(networks, few, batch_size=16, estimator="biased").estimator == "biased"


def counted(network: LoadedModel) -> list[int]:
    """Batch sizes of the forwards that the network makes from now on."""
    seen: list[int] = []
    network.model.register_forward_hook(lambda m, a, out: seen.append(len(out)))
    return seen


@pytest.mark.parametrize("estimator", ["debiased", "minibatch"])
def test_what_is_kept_costs_no_forward(
    networks: list[LoadedModel], few: ImageData, tmp_path: Path, estimator: str
) -> None:
    cache = GramCache(tmp_path / "grams")
    options = {"batch_size": 32, "estimator": estimator, "cache": cache}
    first = run(networks, few, **options)
    assert first.reused == 0
    assert first.kept == sum(f.stat().st_size for f in (tmp_path / "grams").rglob("*.h5"))
    seen = [counted(one) for one in networks]
    again = run(networks, few, **options)
    assert (again.made, again.reused, again.kept) == (0, first.made, 0)
    # Finding the layers runs eight images at most.
    assert max(map(max, seen)) <= 8
    np.testing.assert_array_equal(again.everything.pairs.value, first.everything.pairs.value)
    assert again.accuracy(("at", "pgd")) == first.accuracy(("at", "pgd"))
    # One more network: only its passes are made.
    third = replace(networks[0], name="third", sha256="another")
    more = run([*networks, third], few, **options)
    assert more.reused == first.made
    assert more.made == first.made // 2
    assert more.everything.keys[: len(first.everything.keys)] == first.everything.keys


def test_what_decides_the_content_is_in_the_key(
    networks: list[LoadedModel], few: ImageData, tmp_path: Path, digits_test: ImageData
) -> None:
    cache = GramCache(tmp_path / "grams")
    one = networks[:1]
    options = {"batch_size": 32, "estimator": "minibatch", "cache": cache}
    made = run(one, few, **options).made  # two batches under three conditions
    assert made == 6
    assert run(one, few, **{**options, "seed": 1}).made == 4  # clean images have no seed
    assert run(one, draw(digits_test, 71), **options).made > 0
    assert run(one, few, **{**options, "batch_size": 16}).made == 12
    other = replace(SPEC, params={**SPEC.params, "eps": 0.1})
    assert compare_models(one, few, [[other]], **options).made == 4  # noise has its size
    renamed = [replace(one[0], name="renamed")]
    assert run(renamed, few, **options).made == 0


def test_layers_are_added_to_what_is_kept(
    networks: list[LoadedModel], few: ImageData, tmp_path: Path
) -> None:
    cache = GramCache(tmp_path / "grams")
    options = {"batch_size": 128, "cache": cache}
    one = networks[:1]
    blocks = run(one, few, layers="blocks", **options)
    some = run(one, few, layers=["layer2.*"], **options)
    assert some.reused == 0
    assert run(one, few, layers="blocks", **options).made == 0  # not lost by the second run
    subset = run(one, few, layers=["layer2.0.conv1"], **options)
    assert subset.made == 0
    assert [key[2] for key in subset.everything.keys] == ["layer2.0.conv1"] * 3
    assert blocks.everything.samples == 70


def test_a_killed_run_goes_on(
    networks: list[LoadedModel], few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = GramCache(tmp_path / "grams")
    options = {"batch_size": 16, "estimator": "minibatch"}
    wanted = run(networks, few, **options)
    import repsim.live.api as api

    calls, original = 0, api.batch_grams

    def killed(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "batch_grams", killed)
    with pytest.raises(KeyboardInterrupt):
        run(networks, few, cache=cache, **options)
    monkeypatch.undo()
    found = run(networks, few, cache=cache, **options)
    assert (found.reused, found.made) == (9, 15)
    np.testing.assert_allclose(found.everything.pairs.value, wanted.everything.pairs.value)


def test_a_damaged_file_is_made_anew(
    networks: list[LoadedModel], few: ImageData, tmp_path: Path
) -> None:
    cache = GramCache(tmp_path / "grams")
    options = {"batch_size": 128, "cache": cache}
    wanted = run(networks[:1], few, **options)
    paths = sorted((tmp_path / "grams").rglob("*.h5"))
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    with h5py.File(paths[1], "a") as file:
        file["ids"][0] = 1  # of other samples
    found = run(networks[:1], few, **options)
    assert (found.made, found.reused) == (2, 1)
    np.testing.assert_allclose(found.everything.pairs.value, wanted.everything.pairs.value)


def test_one_batch_of_all_is_the_debiased_estimator(
    networks: list[LoadedModel], few: ImageData
) -> None:
    one, other = (
        run(networks, few, batch_size=300, estimator=name) for name in ("debiased", "minibatch")
    )
    assert other.estimator == "minibatch"
    np.testing.assert_allclose(one.everything.pairs.value, other.everything.pairs.value, atol=1e-6)
    assert any("no intervals" in note for note in other.notes)


def test_networks_are_left_as_they_were(networks: list[LoadedModel], few: ImageData) -> None:
    before = {k: v.clone() for k, v in networks[0].model.state_dict().items()}
    networks[0].model.train()
    run(networks[:1], few)
    assert networks[0].model.training
    assert all(torch.equal(v, before[k]) for k, v in networks[0].model.state_dict().items())
    assert not any(m._forward_hooks for m in networks[0].model.modules())


class Handing(nn.Module):
    """Outputs that are handed on, reshaped, and changed in place after capture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3))
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.inner(self.conv(x)))
        return self.fc(self.flat(self.pool(x)))


def test_tensors_handed_on_are_multiplied_once(
    few: ImageData, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import repsim.live.forward as forward

    torch.manual_seed(0)
    network = replace(loaded, model=type(loaded.model)(Handing(), [0.0], [1.0]).eval())
    calls, original = [], forward.sample_products

    def products(output: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(output.shape[1:]))
        return original(output)

    monkeypatch.setattr(forward, "sample_products", products)
    for batch_size in (128, 32):
        calls.clear()
        live = compare_models([network], few, layers="all", batch_size=batch_size)
        names = [key[2] for key in live.everything.keys]
        assert names == ["conv", "inner.0", "inner", "relu", "pool", "flat"]
        assert len(calls) == 4  # conv, inner.0, relu (changed in place: another), pool
        value = live.everything.pairs.value
        assert value[1, 2] == pytest.approx(1, abs=1e-6)
        assert value[1, 3] < 0.999
        assert value[4, 5] == pytest.approx(1, abs=1e-6)


def bad(network: LoadedModel, value: float) -> LoadedModel:
    model = network.model
    with torch.no_grad():
        dict(model.named_parameters())["encoder.conv1.weight"][0] = value
    return network


def test_refusals(networks: list[LoadedModel], few: ImageData) -> None:
    with pytest.raises(UserError, match="networks of different names; got st, st"):
        run([networks[0], networks[0]], few)
    with pytest.raises(UserError, match="at least 4 samples; got 3"):
        run(networks, draw(few, 3))
    with pytest.raises(UserError, match="estimator expects one of"):
        run(networks, few, estimator="unbiased")
    with pytest.raises(UserError, match="--batch-size expects at least 1"):
        run(networks, few, batch_size=0)
    with pytest.raises(UserError, match="at least 4 for minibatch"):
        run(networks, few, batch_size=2, estimator="minibatch")
    with pytest.raises(UserError, match="attacks expect a list for each of 2 networks; got 1"):
        compare_models(networks, few, [[SPEC]])
    with pytest.raises(UserError, match="kernel expects"):
        run(networks, few, kernel="cubic")
    with pytest.raises(UserError, match=r"layer .* \(clean, st\).*sample 0 has NaN"):
        run([bad(networks[0], torch.nan)], few)


def test_a_layer_without_variation_is_nan(few: ImageData, networks: list[LoadedModel]) -> None:
    model = networks[0].model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer3.0.bn2" in name:
                parameter.zero_()
    for estimator in ("debiased", "minibatch"):
        live = run(networks[:1], few, layers=["layer3.0.bn2", "conv1"], batch_size=32,
                   estimator=estimator)  # fmt: skip
        assert np.isnan(live.everything.pairs.value[1]).all()
        assert any("layer3.0.bn2 (clean, st) is nan" in note for note in live.notes)


def test_any_measure_of_gram_matrices(networks: list[LoadedModel], few: ImageData) -> None:
    live = run(networks[:1], few, measure="cka", kernel="rbf:0.3")
    wanted = cka_pairs(live.representations, kernel="rbf:0.3")
    np.testing.assert_allclose(live.everything.pairs.value, wanted.value)


def test_the_plan() -> None:
    plan = plan_batches(1000, 128, [100, 50], 6, 2**30, None)
    assert (plan.whole, plan.size, plan.estimator, plan.notes) == (True, 1000, "debiased", [])
    # 4·1000·150 bytes of activations and 2·1000²·6 of Gram matrices.
    needed = 600_000 + 12_000_000
    assert plan_batches(1000, 128, [100, 50], 6, needed, None).whole
    plan = plan_batches(1000, 128, [100, 50], 6, needed - 1, None)
    assert (plan.estimator, len(plan.parts), plan.size) == ("minibatch", 7, 128)
    # One batch of all holds no activations.
    assert plan_batches(100, 128, [10**9], 6, 1000, None).whole
    plan = plan_batches(100, 128, [10], 6, 10**9, "minibatch")
    assert (plan.whole, plan.parts) == (False, [(0, 100)])


def test_clean_only(networks: list[LoadedModel], few: ImageData) -> None:
    live = compare_models(networks, few)
    assert live.sides == [("st", "clean"), ("at", "clean")]
    matrix = live.matrix()
    assert matrix.sizes["x"] == len(live.everything.keys)
