"""Probes of real layers: live and from stores, transfer and adaptive attacks, files, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from repsim.attacks import parse_attack
from repsim.attacks import probe as probe_attack
from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, draw, to_float
from repsim.errors import UserError
from repsim.extract import extract
from repsim.hooks import capture, select_layers
from repsim.probe import ProbeReport, Settings, agreement, load_probes, probe_live, probe_stores
from repsim.probe.adaptive import ProbedNetwork, attack_probe, probed, require_adaptive
from repsim.probe.agreement import agreements, different_attacks, kappa
from repsim.probe.classifiers import Linear
from repsim.probe.reduce import choose_reduction
from repsim.probe.settings import validation_rows
from repsim.progress import Silent
from repsim.runtime import Runtime
from repsim.store import open_store
from repsim.study.shared import make_shared, shared_attack

EPS = 0.1


def pgd(**settings: object):  # type: ignore[no-untyped-def]
    text = ",".join(["pgd", "steps=4", *(f"{key}={value}" for key, value in settings.items())])
    return parse_attack(text, eps=EPS)


@pytest.fixture(scope="module")
def few(digits_train: ImageData, digits_test: ImageData) -> tuple[ImageData, ImageData]:
    return draw(digits_train, 500), draw(digits_test, 120)


@pytest.fixture(scope="module")
def both(
    checkpoints: dict[str, Path], few: tuple[ImageData, ImageData]
) -> tuple[ProbeReport, ProbeReport]:
    """Ridge probes of the standard and the adversarially trained network, with all attacks."""
    found = [
        probe_live(
            load_model(checkpoints[name]), *few, attacks=[pgd()], adaptive=True,
            train_on=["clean", "both:pgd"], layers=["relu", "layer2.0", "avgpool"],
        )
        for name in ("st", "at")
    ]  # fmt: skip
    return found[0], found[1]


def features(loaded: LoadedModel, data: ImageData, names: Sequence[str]) -> dict[str, Tensor]:
    with torch.no_grad(), capture(loaded.model, names) as captured:
        loaded.model(to_float(data.images))
        return {name: value.flatten(1) for name, value in captured.items()}


def test_every_layer_against_scikit_learn(
    loaded: LoadedModel, few: tuple[ImageData, ImageData]
) -> None:
    """Accuracy within a point of multinomial logistic regression with the same penalty."""
    report = probe_live(loaded, *few, solver="logistic", strengths=(0.01,))
    names = [
        layer.name
        for layer in select_layers(loaded.model, to_float(few[0].images[:7]), "blocks").layers
    ]
    assert report.layers == names
    train, test = (features(loaded, data, names) for data in few)
    for name in names:
        row = report.table.query("layer == @name").iloc[0]
        assert row["reduce"] == "flatten"
        assert row["features"] == row["used_features"] == train[name].shape[1]
        scaler = StandardScaler().fit(train[name].double().numpy())
        model = LogisticRegression(C=1 / (0.01 * len(few[0])), max_iter=500, tol=1e-3)
        model.fit(scaler.transform(train[name].double().numpy()), few[0].labels)
        wanted = model.predict(scaler.transform(test[name].double().numpy()))
        accuracy = (wanted == few[1].labels.numpy()).mean()
        assert abs(row["accuracy"] - accuracy) <= 0.01
        found = report.predictions[name, "clean", "clean", "none"]
        assert (found == wanted).mean() > 0.98


def test_live_equals_stored(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], tmp_path: Path
) -> None:
    for data, path in zip(few, ("train.h5", "test.h5"), strict=True):
        extract(loaded, data, [pgd()], tmp_path / path, layers=["layer1.0", "avgpool"])
    with open_store(tmp_path / "train.h5") as train, open_store(tmp_path / "test.h5") as test:
        for solver in ("ridge", "adam"):
            options = {"solver": solver, "epochs": 3, "train_on": ["clean", "both"]}
            stored = probe_stores(train, test, model=loaded, attacks=[pgd()],
                                  adaptive=solver == "ridge", **options)  # fmt: skip
            live = probe_live(loaded, *few, attacks=[pgd()], layers=["layer1.0", "avgpool"],
                              adaptive=solver == "ridge", **options)  # fmt: skip
            names = ["layer", "train", "test", "attack"]
            same = live.table.merge(stored.table, on=names, suffixes=("", "_stored"))
            assert len(same) == len(live.table) == len(stored.table)
            # A store is float16.
            assert (same["accuracy"] - same["accuracy_stored"]).abs().max() <= 2 / 120
            for key, found in live.predictions.items():
                assert (found == stored.predictions[key]).mean() > 0.97
        assert set(same["reduce"] + same["reduce_stored"]) == {"flattenflatten"}
        some = probe_stores(train, test, layers="layer*")
        assert some.layers == ["layer1.0"]
        with pytest.raises(UserError, match="none fits 'conv"):
            probe_stores(train, test, layers="conv*")
        with pytest.raises(UserError, match="--adaptive with stores expects --model"):
            probe_stores(train, test, attacks=[pgd()], adaptive=True)
        with pytest.raises(UserError, match="stores of two splits; both are of digits/test"):
            probe_stores(test, test)


def test_one_forward_feeds_all_layers(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = type(loaded.model).forward

    def counted(self: nn.Module, images: Tensor) -> Tensor:
        seen.append(len(images))
        return forward(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(type(loaded.model), "forward", counted)
    probe_live(loaded, *few, batch_size=100)
    passes = [count for count in seen if count > 8]  # the others look for layers
    assert sum(passes) == 500 + 120
    seen.clear()
    probe_live(loaded, *few, batch_size=100, solver="sgd", epochs=3, hold=False)
    # Three epochs of the training part, its validation part once, the test images once.
    held = int(validation_rows(few[0].labels, few[0].keys, 0.1, 0).sum())
    assert sum(count for count in seen if count > 8) == 3 * (500 - held) + held + 120


def test_the_network_is_as_before(loaded: LoadedModel, few: tuple[ImageData, ImageData]) -> None:
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    loaded.model.train()
    probe_live(loaded, *few, solver="sgd", epochs=1, attacks=[pgd()], adaptive=True,
               layers=["layer3.0"])  # fmt: skip
    assert loaded.model.training
    assert all(p.requires_grad and p.grad is None for p in loaded.model.parameters())
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_table(both: tuple[ProbeReport, ProbeReport]) -> None:
    report = both[0]
    table = report.table
    assert report.layers == ["relu", "layer2.0", "avgpool"]
    assert len(table) == 3 * 2 * 4
    targets = {(t, a) for t, a in zip(table["test"], table["attack"], strict=True)}
    assert targets == {
        ("clean", "none"),
        ("noise", "none"),
        ("pgd", "transfer"),
        ("pgd", "adaptive"),
    }
    for row in table.itertuples():
        found = report.predictions[row.layer, row.train, row.test, row.attack]
        assert row.accuracy == pytest.approx((found == report.labels).mean())
        assert row.lower <= row.accuracy <= row.upper
        assert row.samples == 120


def test_attacks_do_what_they_should(both: tuple[ProbeReport, ProbeReport]) -> None:
    def value(
        report: ProbeReport, layer: str, test: str, attack: str, train: str = "clean"
    ) -> float:
        rows = report.table.query(
            "layer == @layer and test == @test and attack == @attack and train == @train"
        )
        return float(rows["accuracy"].iloc[0])

    st, at = both
    for report in both:
        for row in report.table.query("attack == 'adaptive'").itertuples():
            # An image that is wrong clean keeps its prediction, the others may only be lost.
            clean = report.predictions[row.layer, row.train, "clean", "none"]
            found = report.predictions[row.layer, row.train, "pgd", "adaptive"]
            wrong = clean != report.labels
            assert (found[wrong] == clean[wrong]).all()
    # An early layer: the network's own attack transfers badly, one on the probe does not.
    assert value(st, "relu", "pgd", "adaptive") < value(st, "relu", "pgd", "transfer") - 0.2
    assert value(st, "avgpool", "pgd", "adaptive") < 0.6
    assert value(at, "avgpool", "pgd", "adaptive") > value(st, "avgpool", "pgd", "adaptive") + 0.1
    assert value(st, "relu", "pgd", "transfer", "both:pgd") > value(st, "relu", "pgd", "transfer")


def test_images_that_are_given_are_never_adaptive(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], tmp_path: Path
) -> None:
    """A study's shared attacked images are the same whatever probe they are shown to."""
    make_shared([loaded], few[1], pgd(), tmp_path / "shared.h5", batch_size=64,
                runtime=Runtime.of("cpu"), seed=0, progress=Silent())  # fmt: skip
    shared = shared_attack(tmp_path / "shared.h5")
    report = probe_live(loaded, *few, attacks=[pgd(), shared], adaptive=True, layers=["avgpool"])
    assert set(zip(report.table["test"], report.table["attack"], strict=True)) == {
        ("clean", "none"), ("noise", "none"), ("pgd", "transfer"), ("shared", "transfer"),
        ("pgd", "adaptive"),
    }  # fmt: skip
    with pytest.raises(UserError, match="the images of shared are given"):
        require_adaptive([shared], "ridge")
    with pytest.raises(UserError, match="--adaptive expects an attack to aim"):
        probe_live(loaded, *few, attacks=[shared], adaptive=True)


def test_the_probe_of_the_last_layer_is_attacked_as_the_network_is(
    both: tuple[ProbeReport, ProbeReport], loaded: LoadedModel, few: tuple[ImageData, ImageData]
) -> None:
    """By a probe that is the network's own head, transfer and adaptive are one attack."""
    head = dict(loaded.model.encoder.named_modules())["linear"]
    size = head.weight.shape[1]
    own = Linear(head.weight.detach(), head.bias.detach(), torch.zeros(size), torch.ones(size), 0.0)
    images = to_float(few[1].images)
    with probed(
        loaded.model, images, "avgpool", choose_reduction("flatten", (size, 1, 1), 1), own
    ) as net:
        assert net(images) == pytest.approx(loaded.model(images).detach(), abs=1e-4)
        wanted = pgd().function(
            loaded.model, images, few[1].labels, ids=few[1].keys, **pgd().params
        )
        found = pgd().function(net, images, few[1].labels, ids=few[1].keys, **pgd().params)
    assert ((found - wanted).abs() > 1e-3).float().mean() < 0.02


def test_adaptive_is_the_probe_attack_of_the_house(
    both: tuple[ProbeReport, ProbeReport], loaded: LoadedModel, few: tuple[ImageData, ImageData]
) -> None:
    """Its weights, put back to those of the whole layer, give `repsim.attacks.probe` the same."""
    report, data = both[0], few[1]
    for layer, shape in (("relu", (16, 8, 8)), ("layer2.0", (32, 4, 4))):
        weights = {k: torch.from_numpy(v) for k, v in report.weights[layer, "clean"].items()}
        linear = Linear(**weights, strength=1.0)
        weight, bias = linear.folded(choose_reduction("auto", shape, 1024))
        clean = report.predictions[layer, "clean", "clean", "none"]
        right = torch.from_numpy(clean) == data.labels
        images = to_float(data.images)[right]
        attacked = probe_attack(
            loaded.model, images, data.labels[right], weight=weight, bias=bias, layer=layer,
            eps=EPS, steps=4, mode="evaluate", ids=data.keys[right],
        )  # fmt: skip
        with torch.no_grad(), capture(loaded.model, [layer]) as captured:
            loaded.model(attacked)
            found = (captured[layer].flatten(1) @ weight.T + bias).argmax(1).numpy()
        wanted = report.predictions[layer, "clean", "pgd", "adaptive"][right.numpy()]
        assert (found == wanted).mean() > 0.97


def test_adaptive_accuracy_of_a_linear_network_in_closed_form() -> None:
    """On w·x an image is safe exactly where its margin exceeds eps·‖w‖₁ (no pixel clips)."""
    generator = torch.Generator().manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(200, 1, 3, 3, generator=generator)
    weight = torch.randn(2, 9, generator=generator)
    probe = Linear(weight, torch.zeros(2), torch.full((9,), 0.5), torch.full((9,), 2.0), 0.0)
    net = ProbedNetwork(lambda x: x, choose_reduction("flatten", (1, 3, 3), 9), probe)
    margins = net(images)[:, 0] - net(images)[:, 1]
    labels = (margins < 0).long()
    eps = float(margins.abs().median() / (2 * (weight[0] - weight[1]).abs().sum()))
    spec = parse_attack(f"pgd,steps=10,eps={eps}", eps=eps)
    keys = torch.arange(200)
    found = attack_probe(
        net, spec, iter([(keys, images, labels, keys)]), labels.numpy(), Runtime.of("cpu"), seed=0
    )
    assert (found == labels.numpy()).mean() == pytest.approx(0.5, abs=0.01)
    safe = margins.abs() > eps * 2 * (weight[0] - weight[1]).abs().sum()
    assert ((found == labels.numpy()) == safe.numpy()).mean() > 0.99


def test_files(both: tuple[ProbeReport, ProbeReport], tmp_path: Path) -> None:
    report = both[0]
    path = tmp_path / "probes.h5"
    report.save(path)
    found = load_probes(path)
    pd.testing.assert_frame_equal(found.table, report.table)
    assert list(found.predictions) == list(report.predictions)
    for key, predicted in report.predictions.items():
        assert (found.predictions[key] == predicted).all()
    for key, weights in report.weights.items():
        for name, value in weights.items():
            assert (found.weights[key][name] == value).all()
    assert list(found.weights) == list(report.weights)
    assert found.provenance == report.provenance
    assert found.classes == 10
    assert found.notes == report.notes
    assert (found.ids == report.ids).all()
    assert (found.labels == report.labels).all()
    with xr.open_dataset(path, engine="h5netcdf") as opened:
        assert opened["prediction"].dims == ("row", "sample")
        assert list(opened["layer"].values) == list(report.table["layer"])
    report.to_csv(tmp_path / "probes.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "probes.csv"), report.table)
    (tmp_path / "other.h5").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cut short"):
        load_probes(tmp_path / "other.h5")
    with pytest.raises(UserError, match="there is no such file"):
        load_probes(tmp_path / "none.h5")


def test_agreement(both: tuple[ProbeReport, ProbeReport]) -> None:
    a, b = both
    found = agreement(a, b)
    assert len(found) == len(a.table)
    assert (found["layer_a"] == found["layer_b"]).all()
    for row in found.itertuples():
        x, y = (r.predictions[row.layer_a, row.train, row.test, row.attack] for r in both)
        assert row.agreement == pytest.approx((x == y).mean())
        assert row.kappa == pytest.approx(cohen_kappa_score(x, y))
        assert row.lower <= row.agreement <= row.upper
    assert (agreement(a, a)["kappa"] == 1).all()
    everything = agreement(a, b, pairs="all")
    assert len(everything) == 3 * len(found)
    # Matched by image, not by place.
    order = np.random.default_rng(0).permutation(len(b.labels))[:100]
    shuffled = ProbeReport(
        b.table, {key: value[order] for key, value in b.predictions.items()}, b.labels[order],
        b.ids[order], b.provenance,
    )  # fmt: skip
    part = agreement(a, shuffled)
    assert (part["samples"] == 100).all()
    key = ("relu", "clean", "clean", "none")
    wanted = (a.predictions[key][order] == b.predictions[key][order]).mean()
    assert part["agreement"].iloc[0] == pytest.approx(wanted)
    other = ProbeReport(b.table, b.predictions, b.labels, b.ids + np.uint64(1), b.provenance)
    with pytest.raises(UserError, match="none in common"):
        agreement(a, other)
    renamed = ProbeReport(b.table, b.predictions, (b.labels + 1) % 10, b.ids, b.provenance)
    with pytest.raises(UserError, match="expects the same classes"):
        agreement(a, renamed)


def test_agreement_of_several(both: tuple[ProbeReport, ProbeReport]) -> None:
    a, b = both
    found = agreements({"one": a, "two": b, "three": b})
    pairs = found.groupby(["a", "b"], sort=False)
    assert list(pairs.groups) == [("one", "two"), ("one", "three"), ("two", "three")]
    assert (found.query("a == 'two'")["agreement"] == 1).all()
    assert different_attacks({"one": a, "two": b}) == []
    attacks = {**b.provenance["attacks"], "pgd": {"params": {"eps": 0.2}}}
    other = ProbeReport(b.table, b.predictions, b.labels, b.ids, {"attacks": attacks})
    assert different_attacks({"one": a, "two": other}) == [
        "pgd was made with other settings for one than for two"
    ]


def test_kappa_of_one_class_is_not_a_number() -> None:
    assert np.isnan(kappa(np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.int64)))


@pytest.mark.parametrize(
    ("text", "shape", "most", "found", "used"),
    [
        ("auto", (16, 8, 8), 1024, "flatten", 1024),
        ("auto", (64, 32, 32), 1024, "grid:4x4", 1024),
        ("auto", (64, 32, 32), 1000, "grid:2x2", 256),
        ("auto", (16, 7, 7), 700, "avgpool", 16),
        ("auto", (2048, 4, 4), 1024, "avgpool", 2048),
        ("auto", (5000,), 1024, "project:1024", 1024),
        ("auto", (65, 192), 1024, "project:1024", 1024),
        ("avgpool", (16, 8, 8), 1024, "avgpool", 16),
        ("project:32", (16, 8, 8), 1024, "project:32", 32),
    ],
)
def test_reductions(text: str, shape: tuple[int, ...], most: int, found: str, used: int) -> None:
    reduction = choose_reduction(text, shape, most)
    outputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    features = reduction(outputs)
    assert (reduction.text, reduction.used) == (found, used)
    assert features.shape == (3, used)
    # Its adjoint: <R x, w> = <x, R' w>.
    weight = torch.randn(4, used, generator=torch.Generator().manual_seed(1))
    lifted = reduction.lifted(weight)
    assert lifted.shape == (4, reduction.features)
    wanted = features @ weight.T
    assert outputs.flatten(1) @ lifted.T == pytest.approx(wanted, abs=1e-3)
    if reduction.window:
        rows, columns = map(int, found[5:].split("x"))
        means = outputs.view(3, shape[0], rows, shape[1] // rows, columns, -1).mean((3, 5))
        assert features == pytest.approx(means.flatten(1), abs=1e-5)


def test_user_mistakes(loaded: LoadedModel, few: tuple[ImageData, ImageData]) -> None:
    train, test = few
    with pytest.raises(UserError, match="--adaptive expects an attack"):
        probe_live(loaded, train, test, adaptive=True)
    with pytest.raises(UserError, match="knn has none"):
        probe_live(loaded, train, test, attacks=[pgd()], adaptive=True, solver="knn")
    feature = parse_attack("feature,layer=layer1.0", eps=EPS)
    with pytest.raises(UserError, match="looks at something else"):
        probe_live(loaded, train, test, attacks=[feature], adaptive=True)
    with pytest.raises(UserError, match="--train-on expects clean; got 'pgd'; name an attack"):
        probe_live(loaded, train, test, train_on=["pgd"])
    with pytest.raises(UserError, match="not trained on; 500 of 500"):
        probe_live(loaded, train, train)
    one = train.take(torch.nonzero(train.labels == 0)[:, 0])
    with pytest.raises(UserError, match="training images of two classes at least"):
        probe_live(loaded, one, test)
    with pytest.raises(UserError, match="--features expects at least 1"):
        probe_live(loaded, train, test, most=0)
    with pytest.raises(UserError, match="--reduce expects auto, flatten"):
        probe_live(loaded, train, test, reduce="half")
    with pytest.raises(UserError, match="whole"):
        Settings(solver="knn", strengths=(0.5,)).checked()
