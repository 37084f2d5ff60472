"""Measures of all layers at once: what is done once, intervals, memory, notes, the command."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repsim.cli import main
from repsim.compare import compare
from repsim.errors import UserError
from repsim.similarity import (
    KNOWN,
    Pairwise,
    disagreement,
    needs,
    parse_measure,
    svcca,
)
from repsim.similarity.measure import CKA
from repsim.similarity.neighbours import MutualKNN
from repsim.similarity.orthogonal import Procrustes
from repsim.similarity.prepared import PreparedMeasure
from repsim.similarity.tiles import assign_groups
from repsim.store import open_store

Array = np.ndarray
PREPARED = {name: one for name, one in KNOWN.items() if isinstance(one, PreparedMeasure)}
N = 60


@dataclass
class Counted:
    """A layer that counts what is read of it."""

    values: Array
    layer: str
    condition: str = "clean"
    model: str = "net"
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return len(self.values)

    @property
    def features(self) -> int:
        return int(self.values.shape[1])

    def rows(self, start: int, stop: int) -> Array:
        self.reads.append((start, stop))
        return self.values[start:stop]


def layers(name: str, count: int = 4, *, n: int = N) -> list[Counted]:
    """Layers that drift, of a width that every measure takes; logits are always called that."""
    rng = np.random.default_rng(0)
    values, found = rng.normal(size=(n, 6)), []
    for depth in range(count):
        values = np.tanh(values @ rng.normal(size=(6, 6))) + 0.3 * rng.normal(size=(n, 6))
        layer = "logits" if needs(name) == "logits" else f"layer{depth}"
        found.append(Counted(values, layer, model=f"net{depth}"))
    return found


EVERYTHING = np.ones((4, 4), dtype=bool)


@pytest.mark.parametrize("name", PREPARED)
def test_every_pair_and_every_replicate_is_the_measure_of_two_arrays(name: str) -> None:
    measure, found = PREPARED[name], layers(name)
    pairs = measure.pairs(found, wanted=EVERYTHING, groups=5)
    group_of = assign_groups(N, 5)
    assert pairs.sizes.tolist() == np.bincount(group_of).tolist()
    for i, a in enumerate(found):
        for j, b in enumerate(found):
            assert pairs.value[i, j] == pytest.approx(measure(a.values, b.values), abs=1e-9)
    assert pairs.replicates is not None
    for group in range(5):
        stay = group_of != group
        expected = measure(found[0].values[stay], found[2].values[stay])
        assert pairs.replicates[group, 0, 2] == pytest.approx(expected, abs=1e-9)
    assert pairs.attributes["larger"] == measure.declaration.larger


@pytest.mark.parametrize("name", PREPARED)
def test_little_memory_changes_no_number(name: str) -> None:
    found = layers(name)
    wanted = EVERYTHING.copy()
    wanted[3, 1] = wanted[1, 3] = False
    much = PREPARED[name].pairs(found, wanted=wanted, groups=3)
    for memory in (1, 3 * PREPARED[name].room(N, 6)):
        little = PREPARED[name].pairs(found, wanted=wanted, groups=3, memory=memory)
        np.testing.assert_array_equal(little.value, much.value)
        np.testing.assert_array_equal(little.replicates, much.replicates)  # type: ignore[arg-type]
    assert np.isnan(much.value[3, 1])
    assert np.isfinite(much.value[wanted]).all()


def test_activations_are_read_and_prepared_once_and_symmetric_cells_computed_once() -> None:
    prepared, compared = [], []

    class Told(Procrustes):
        def of_gram(self, kernel: Any, coarse: bool) -> Any:
            prepared.append(len(kernel))
            return super().of_gram(kernel, coarse)

        def between(self, x: Any, y: Any) -> float:
            compared.append(len(x.factor))
            return super().between(x, y)

    found = layers("procrustes")
    told: list[tuple[int, int]] = []
    pairs = Told().pairs(
        found, wanted=EVERYTHING, groups=1, progress=lambda *done: told.append(done)
    )
    assert [one.reads for one in found] == [[(0, N)]] * 4
    assert len(prepared) == 4
    assert len(compared) == 10  # of 16
    assert told[-1] == (14, 14)
    np.testing.assert_array_equal(pairs.value, pairs.value.T)
    Told().pairs(found, wanted=EVERYTHING, groups=10)
    assert [one.reads for one in found] == [[(0, N)] * 2] * 4  # read once for all replicates
    assert len(prepared) == 4 + 4 * 11
    again = layers("procrustes")
    Told().pairs(again, wanted=EVERYTHING, groups=1, memory=1)
    assert len(again[0].reads) == 1  # kept for all pairs with the others
    assert len(again[3].reads) == 3


def test_an_asymmetric_measure_takes_rows_from_columns() -> None:
    found = layers("linear-regression")
    found[1].values = found[0].values[:, :2]
    wanted = np.zeros((4, 4), dtype=bool)
    wanted[1, 0] = True
    value = PREPARED["linear-regression"].pairs(found, wanted=wanted).value
    assert value[1, 0] == pytest.approx(1)  # two of its features
    assert np.isnan(value[0, 1])


def test_intervals_hold_the_value_of_many_samples() -> None:
    found = layers("rsa", 2)
    many = layers("rsa", 2, n=2000)
    result = compare(found[:1], found[1:], measure="rsa")
    truth = float(compare(many[:1], many[1:], measure="rsa", groups=1)["similarity"][0, 0])
    assert float(result["lower"][0, 0]) < truth < float(result["upper"][0, 0])
    assert "jackknife over 10 groups" in json.loads(result.attrs["provenance"])["interval"]


def test_groups() -> None:
    found = layers("rsa", 2)
    wanted = EVERYTHING[:2, :2]
    assert PREPARED["rsa"].pairs(found, wanted=wanted, groups=1).replicates is None
    with pytest.raises(UserError, match="groups expects at least 1"):
        PREPARED["rsa"].pairs(found, wanted=wanted, groups=0)
    few = MutualKNN(k=4).pairs(layers("mutual-knn", 2, n=6), wanted=wanted)
    assert few.replicates is None
    assert any("no intervals: 6 samples are too few" in note for note in few.notes)
    few = PREPARED["rsa"].pairs(layers("rsa", 2, n=8), wanted=wanted)
    assert few.replicates is not None
    assert len(few.replicates) == 8
    assert any("8 jackknife groups, one a sample, instead of 10" in note for note in few.notes)


def test_a_layer_that_says_nothing_is_noted_once_and_leaves_the_others() -> None:
    found = layers("cca")
    found[1].values = found[2].values = np.random.default_rng(1).normal(size=(N, 59))
    found[3].values = np.ones((N, 4))
    pairs = PREPARED["cca"].pairs(found, wanted=EVERYTHING)
    assert np.isfinite(pairs.value).sum() == 1
    assert pairs.notes == [
        "layer layer1 (clean, net1) and 1 more: nan, expected fewer features than the 60 samples "
        "- 1, as any data fit others perfectly; use more samples, or extract --reduce avgpool, or "
        "svcca, which reduces them",
        "layer layer3 (clean, net3): nan, constant activations",
    ]
    assert not found[1].reads  # nothing is read in vain
    found[0].values = found[1].values
    with pytest.raises(UserError, match="has no cca: expected fewer features"):
        PREPARED["cca"].pairs(found, wanted=EVERYTHING)


def test_a_layer_may_be_predicted_that_cannot_predict() -> None:
    found = layers("linear-regression")
    found[1].values = np.random.default_rng(1).normal(size=(N, 300))
    pairs = PREPARED["linear-regression"].pairs(found, wanted=EVERYTHING)
    assert np.isnan(pairs.value[:, 1]).all()
    assert np.isfinite(np.delete(pairs.value, 1, axis=1)).all()
    assert "net1): nan, where it is a column: expected fewer features" in pairs.notes[0]


def test_notes_say_what_a_reader_needs() -> None:
    def notes(name: str, found: list[Counted]) -> str:
        return " | ".join(PREPARED[name].pairs(found, wanted=EVERYTHING, groups=1).notes)

    assert notes("rsa", layers("rsa")) == ""
    assert "larger means less alike" in notes("procrustes", layers("procrustes"))
    assert "unrelated representations share 0.169" in notes("mutual-knn", layers("mutual-knn"))
    found = layers("cca")
    found[0].values = np.random.default_rng(0).normal(size=(N, 54))
    assert "cca, 4 of 10 pairs: together more dimensions than the 60" in notes("cca", found)
    found = layers("jaccard")
    found[2].values[:20] = found[2].values[0]
    assert "net2): 22 of 60 samples whose last neighbour" in notes("jaccard", found)


@pytest.mark.parametrize("option", [{"kernel": "rbf"}, {"estimator": "biased"}, {"batch_size": 8}])
def test_options_of_cka_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="belong to the measure cka"):
        compare(layers("rsa"), layers("rsa"), measure="rsa", **option)


def test_a_function_of_the_users_gets_intervals_if_asked() -> None:
    found = layers("rsa", 2)
    calls = []

    def ratio(X: Array, Y: Array) -> float:
        calls.append(len(X))
        return float(X.std() / Y.std())

    wanted = EVERYTHING[:2, :2]
    assert Pairwise(ratio, "ratio").pairs(found, wanted=wanted, groups=10).replicates is None
    assert calls == [N] * 4
    pairs = Pairwise(ratio, "ratio", intervals=True).pairs(found, wanted=wanted, groups=4)
    assert calls == [N] * 8 + [45] * 16
    stay = assign_groups(N, 4) != 3
    assert pairs.replicates is not None
    assert pairs.replicates[3, 0, 1] == ratio(found[0].values[stay], found[1].values[stay])
    assert pairs.notes == ["ratio was called 5 times for each of 4 pairs"]


# As typed


def test_a_measure_and_its_settings_as_typed(tmp_path: Path) -> None:
    assert parse_measure("svcca, variance=0.9").name == "svcca,variance=0.9"  # type: ignore[union-attr]
    assert parse_measure("mutual-knn,k=5,metric=euclidean") == MutualKNN(5, "euclidean")
    assert parse_measure("mutual-knn,k=10").name == "mutual-knn"  # type: ignore[union-attr]
    assert parse_measure("cka,estimator=minibatch,batch_size=32") == CKA("minibatch", "linear", 32)
    (tmp_path / "a,b.py").write_text("def f(X, Y): return 7\n")
    assert parse_measure(f"{tmp_path / 'a,b.py'}:f")(0, 0) == 7  # type: ignore[operator]
    assert [needs(one) for one in ("jensen-shannon", MutualKNN(), "pwcca", disagreement)] == [
        "logits", "gram", "activations", "activations"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("svca", r"--measure expects one of .*got 'svca'; near: .*svcca"),
        ("svcca,variants=1", r"svcca takes variance; got 'variants'; near: variance"),
        ("cca,k=3", r"--measure cca takes no settings; got 'k'$"),
        ("svcca,0.9", r"svcca: expected key=value after the name; got '0.9'"),
        ("svcca,variance=", "expected key=value"),
        ("svcca,variance=.9,variance=.8", "expected variance once"),
        ("svcca,variance=most", "svcca: variance expects a number; got 'most'"),
        ("svcca,variance=nan", "svcca: variance expects a number; got 'nan'"),
        ("svcca,variance=2", "variance expects a number above 0 and at most 1; got 2"),
        ("mutual-knn,k=2.5", "mutual-knn: k expects a whole number; got '2.5'"),
        ("jaccard,metric=l1", "jaccard's metric expects cosine or euclidean; got 'l1'"),
    ],
)
def test_what_is_typed_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_measure(text)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """A folder with the stores st.h5 and at.h5 of 80 digits."""
    folder = tmp_path_factory.mktemp("desk")
    for name, path in checkpoints.items():
        options = ["--model", str(path), "--samples", "80", "--attack", "fgsm", "--quiet"]
        assert run("extract", *options, "--out", str(folder / f"{name}.h5")) == 0
    return folder


def test_the_list_of_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "--measure", "list") == 0
    said = capsys.readouterr().out
    for name in KNOWN:
        assert name in said
    assert "variance=0.99" in said
    assert "invertible linear, translation" in said


@pytest.mark.parametrize(
    "measure", ["svcca,variance=0.9", "procrustes", "linear-regression", "rsa-spearman", "cknna"]
)
def test_compare_of_a_store(
    desk: Path, tmp_path: Path, measure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.h5"
    assert run("compare", str(desk / "st.h5"), "--measure", measure, "--out", str(out)) == 0
    said = capsys.readouterr()
    assert "clean with fgsm" in said.out
    with xr.open_dataset(out, engine="h5netcdf") as result:
        assert result["similarity"].shape == (5, 5)
        assert result.attrs["measure"] == measure
        assert "lower" in result
        if measure.startswith("svcca"):
            assert json.loads(result.attrs["provenance"])["variance"] == 0.9
            with open_store(desk / "st.h5") as store:
                x, y = (
                    store.representation(condition, store.layers[2]).rows(0, 80)
                    for condition in ("clean", "adv")
                )
            assert float(result["similarity"][2, 2]) == pytest.approx(svcca(x, y, variance=0.9))


def test_compare_of_predictions_across_stores(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, numbers = tmp_path / "r.h5", tmp_path / "r.json"
    stores = [str(desk / "st.h5"), str(desk / "at.h5")]
    options = ["--measure", "disagreement", "--pair", "st:clean,at:adv", "--json", str(numbers)]
    assert run("compare", *stores, *options, "--out", str(out)) == 0
    with open_store(stores[0]) as st, open_store(stores[1]) as at:
        x, y = st.column("clean", "logits"), at.column("adv", "logits")
        one = at.logits("adv")
        assert (one.layer, one.condition, one.model) == ("logits", "fgsm", "at")
        assert one.shape == (10,)
        assert one.rows(3, 5).dtype == np.float32
        np.testing.assert_array_equal(one.rows(0, 80), y)
    with xr.open_dataset(out, engine="h5netcdf") as result:
        assert result["x_layer"].values.tolist() == ["logits"]
        assert float(result["similarity"][0, 0]) == disagreement(x, y)
    assert json.loads(numbers.read_text())["alignment_mean"] == disagreement(x, y)
    capsys.readouterr()
    assert run("compare", *stores, *options, "--layers", "layer1*", "--out", str(out)) == 2
    assert "leave --layers out" in capsys.readouterr().err


def test_groups_of_the_command(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("def gap(X, Y):\n    return abs(X - Y).mean()\n")
    mine = f"{tmp_path / 'mine.py'}:gap"
    for measure, groups, has in (
        (mine, None, False), (mine, 5, True), ("rsa", None, True), ("rsa", 1, False)
    ):  # fmt: skip
        out = tmp_path / "r.h5"
        options = [] if groups is None else ["--groups", str(groups)]
        options += ["--layers", "layer2.0", "--overwrite", "--quiet"]
        arguments = [str(desk / "st.h5"), "--measure", measure, *options, "--out", str(out)]
        assert run("compare", *arguments) == 0
        with xr.open_dataset(out, engine="h5netcdf") as result:
            assert ("lower" in result) == has
            assert result.attrs["measure"] == measure
    capsys.readouterr()
    assert run("compare", str(desk / "st.h5"), "--measure", "svca") == 2
    said = capsys.readouterr().err.strip()
    assert "near: svcca" in said
    assert len(said.splitlines()) == 1
    (tmp_path / "no.py").write_text("f = 3\n")
    assert run("compare", str(desk / "st.h5"), "--measure", f"{tmp_path / 'no.py'}:f") == 2
    assert "expects a function" in capsys.readouterr().err
