"""The commands, one after the other, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from repsim.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """A folder with st.pt, at.pt and their stores st.h5, at.h5 of 80 digits."""
    folder = tmp_path_factory.mktemp("desk")
    for name, path in checkpoints.items():
        (folder / f"{name}.pt").write_bytes(path.read_bytes())
        model = ["--model", str(folder / f"{name}.pt"), "--samples", "80", "--quiet"]
        assert run("extract", *model, "--out", str(folder / f"{name}.h5")) == 0
    return folder


def test_the_two_lines(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ckpt.pt").write_bytes((desk / "st.pt").read_bytes())
    assert run("extract", "--model", "ckpt.pt", "--attack", "pgd") == 0
    said = capsys.readouterr()
    assert "pgd,eps=0.15" in said.err  # the attack's size is printed
    assert "will take" in said.err  # and what it costs on the disk
    assert "repsim cka --pair clean,adv" in said.out
    assert run("cka", "--pair", "clean,adv") == 0
    said = capsys.readouterr()
    assert "clean with pgd" in said.out
    assert "clean with noise (control)" in said.out
    with xr.open_dataset("cka.h5", engine="h5netcdf") as result:
        assert result["similarity"].shape == (5, 5)
        assert (result["lower"] <= result["similarity"]).all()
        assert set(result["x_condition"].values) == {"clean"}
        assert set(result["y_condition"].values) == {"pgd"}
        summary = json.loads(result.attrs["summary"])
    assert summary["alignment_last_third"] < summary["control"]["alignment_last_third"]
    assert Path("cka.png").stat().st_size > 5000
    # The same again is done at once, and another pair does not go over it.
    assert run("cka", "--pair", "clean,adv") == 0
    before = Path("cka.h5").read_bytes()
    assert run("cka", "--pair", "clean,noise") == 2
    assert "another comparison" in capsys.readouterr().err
    assert Path("cka.h5").read_bytes() == before
    assert run("cka", "--pair", "clean,noise", "--overwrite") == 0


def test_cka_equals_the_library_on_the_stored_activations(desk: Path, tmp_path: Path) -> None:
    from repsim.similarity import cka
    from repsim.store import open_store

    out = tmp_path / "cka.h5"
    assert run("cka", str(desk / "st.h5"), "--out", str(out), "--quiet") == 0
    with open_store(desk / "st.h5") as store, xr.open_dataset(out, engine="h5netcdf") as result:
        x = store.representation("clean", "layer2.0").rows(0, 80)
        y = store.representation("pgd", "layer3.0").rows(0, 80)
        cell = result["similarity"].values[
            list(result["x_layer"].values).index("layer2.0"),
            list(result["y_layer"].values).index("layer3.0"),
        ]
    assert cell == pytest.approx(cka(x, y), abs=1e-6)


def test_across_stores_rows_are_matched_by_sample(desk: Path, tmp_path: Path) -> None:
    """A store of the same images in another order gives the same matrix."""
    from repsim.attacks import parse_attack
    from repsim.checkpoint import load_model
    from repsim.data import draw, load_data
    from repsim.extract import extract

    images = draw(load_data("digits", "test"), 80)
    turned = images.take(np.random.default_rng(0).permutation(80))
    attack = parse_attack("pgd", eps=0.15)
    extract(load_model(desk / "at.pt"), turned, [attack], tmp_path / "turned.h5")
    for name, other in (("plain", desk / "at.h5"), ("shuffled", tmp_path / "turned.h5")):
        pair = f"st:adv,{other.stem}:adv"
        files = [str(desk / "st.h5"), str(other)]
        out = str(tmp_path / f"{name}.h5")
        assert run("cka", *files, "--pair", pair, "--out", out, "--groups", "1", "--quiet") == 0
    values = [
        xr.load_dataset(tmp_path / f"{n}.h5", engine="h5netcdf")["similarity"].values
        for n in ("plain", "shuffled")
    ]
    np.testing.assert_allclose(values[0], values[1], atol=2e-3)  # float16 and batch rounding
    assert values[0][0, 0] > 0.5


def test_stores_named_only_in_the_pair(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("features.h5").write_text("not needed, so not read")
    pair = f"{desk / 'st.h5'}:clean,{desk / 'at.h5'}:clean"
    assert run("cka", "--pair", pair, "--out", str(tmp_path / "c.h5"), "--quiet") == 0
    result = xr.load_dataset(tmp_path / "c.h5", engine="h5netcdf")
    assert (result["x_model"].values[0], result["y_model"].values[0]) == ("st", "at")


def test_evaluate_writes_what_it_says(desk: Path, tmp_path: Path) -> None:
    table, summary = tmp_path / "t.csv", tmp_path / "s.json"
    attacks = ["--attack", "pgd", "--attack", "pgd,norm=l2,eps=1,as=l2", "--attack", "noise"]
    model = ["--model", str(desk / "at.pt"), "--samples", "60"]
    files = ["--out", str(table), "--json", str(summary), "--quiet"]
    assert run("evaluate", *model, *attacks, *files) == 0
    rows, numbers = pd.read_csv(table), json.loads(summary.read_text())
    assert len(rows) == numbers["samples"] == 60
    assert numbers["clean_accuracy"] == pytest.approx((rows.clean == rows.label).mean())
    robust = numbers["robust_accuracy"]
    assert robust["pgd"] == pytest.approx(1 - rows.pgd_lost.mean())
    assert robust["worst"] == pytest.approx(1 - (rows.pgd_lost | rows.l2_lost).mean())
    low, high = numbers["robust_accuracy_ci"]["pgd"]
    assert low < robust["pgd"] < high
    assert rows.pgd_norm.max() <= 0.15 + 1e-6
    assert rows.l2_norm.max() <= 1 + 1e-5


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("heatmap", ["st-adv.h5", "at-adv.h5"]),
        ("difference", ["at-adv.h5", "st-adv.h5"]),
        ("diagonal", ["st-adv.h5", "st-noise.h5"]),
        ("overview", ["st-adv.h5", "st-noise.h5", "at-adv.h5", "at-noise.h5"]),
    ],
)
def test_plot(desk: Path, tmp_path: Path, kind: str, files: list[str]) -> None:
    for file in files:
        name, condition = file.removesuffix(".h5").split("-")
        out = str(tmp_path / file)
        store = str(desk / f"{name}.h5")
        assert run("cka", store, "--pair", f"clean,{condition}", "--out", out, "--quiet") == 0
    figure = tmp_path / "figure.pdf"
    assert (
        run("plot", *(str(tmp_path / f) for f in files), "--kind", kind, "--out", str(figure)) == 0
    )
    assert figure.read_bytes().startswith(b"%PDF")


def test_info_tells_the_three_kinds_apart(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cka", str(desk / "st.h5"), "--out", str(tmp_path / "c.h5"), "--quiet") == 0
    for path, kind, detail in (
        (desk / "at.pt", "checkpoint", "scenario"),
        (desk / "st.h5", "store", "layer3.0"),
        (tmp_path / "c.h5", "result", "debiased"),
    ):
        capsys.readouterr()
        assert run("info", str(path)) == 0
        text = capsys.readouterr().out
        assert text.split()[:2] == ["kind", kind]
        assert detail in text


def test_layers_lists_what_blocks_would_take(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "layers.json"
    assert run("layers", "--model", str(desk / "st.pt"), "--layers", "blocks",
               "--json", str(listed)) == 0  # fmt: skip
    names = [layer["name"] for layer in json.loads(listed.read_text())["layers"]]
    assert names == ["relu", "layer1.0", "layer2.0", "layer3.0", "avgpool"]


def test_an_interrupted_train_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["train", "--data", "digits", "--model", "resnet8", "--samples", "200", "--epochs", "2",
            "--out", "a.pt", "--quiet"]  # fmt: skip
    from repsim.progress import Silent

    def interrupt(self: Silent, row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Silent, "row", interrupt)
        assert run(*line) == 130
    assert Path("a.pt.resume").exists()
    assert run(*line) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_data_by_folder_root_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint trained on a folder finds the data again by name below REPSIM_DATA."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "sets" / "squares").mkdir(parents=True)
    for split in ("train", "test"):
        images = rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / "sets" / "squares" / f"{split}.npz", images=images,
                 labels=np.arange(64) % 2, classes=["a", "b"])  # fmt: skip
    train = ["train", "--model", "resnet8", "--epochs", "1", "--batch-size", "32", "--quiet"]
    assert run(*train, "--data", "sets/squares", "--out", "s.pt") == 0
    assert run("evaluate", "--model", "s.pt", "--attack", "fgsm", "--quiet") == 2
    monkeypatch.setenv("REPSIM_DATA", "sets")
    assert run("evaluate", "--model", "s.pt", "--attack", "fgsm", "--quiet") == 0
    monkeypatch.delenv("REPSIM_DATA")
    assert run("evaluate", "--model", "s.pt", "--data-root", "sets", "--quiet") == 0


def test_evaluate_with_many_attacks_says_what_it_saw(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = ["unseen,steps=2", "apgd-t,steps=4,targets=2", "deepfool,steps=10",
               "feature,steps=2", f"mim,surrogate={desk / 'st.pt'},as=transfer",
               "autoattack,version=short"]  # fmt: skip
    given = [part for text in attacks for part in ("--attack", text)]
    files = ["--json", str(tmp_path / "s.json"), "--out", str(tmp_path / "t.csv")]
    assert run("evaluate", str(desk / "at.pt"), "--samples", "40", *given, *files) == 0
    said, numbers = capsys.readouterr(), json.loads((tmp_path / "s.json").read_text())
    names = ["linf-16", "l2-0.25", "l2-0.5", "l1-7.84", "l1-12", "apgd-t", "deepfool", "feature",
             "transfer", "autoattack", "worst"]  # fmt: skip
    assert list(numbers["robust_accuracy"]) == names
    bounded = [v for k, v in numbers["robust_accuracy"].items() if k != "deepfool"]
    assert numbers["robust_accuracy"]["worst"] == min(bounded)
    assert 0 < numbers["median_norm"]["deepfool"] < 5
    assert "(no eps; median l2" in said.out
    assert numbers["attacks"][8]["surrogate"]["name"] == "st"
    assert set(numbers["gradient_masking"]) == {
        "single_step", "black_box", "unbounded", "zero_gradient", "restart"
    }  # fmt: skip
    assert "is not the standard AutoAttack" in said.out
    assert "masked gradients" in said.out
    assert "autoattack: apgd-ce" in said.out
    rows = pd.read_csv(tmp_path / "t.csv")
    right = rows.label == rows.clean
    fooled = rows.autoattack_lost & right
    assert (rows.autoattack_first_success[fooled] >= 0).all()
    assert (rows.autoattack_norm[rows.autoattack_first_success < 0] == 0).all()


def test_the_transfer_matrix(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "x.json"), "--out", str(tmp_path / "x.csv")]
    networks = [str(desk / "st.pt"), str(desk / "at.pt")]
    assert run("evaluate", "--cross", *networks, "--samples", "40", *files) == 0
    said, numbers = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    assert "rows: made on" in said
    assert numbers["models"] == ["st", "at"]
    table = pd.read_csv(tmp_path / "x.csv")
    assert len(table) == 4
    diagonal = table[table.made_on == table.shown_to].robust_accuracy.tolist()
    assert diagonal == [numbers["robust_accuracy"][i][i] for i in range(2)]


def test_smoothed_inference(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--samples", "30", "--no-masking", "--json", str(tmp_path / "s.json")]
    assert run("evaluate", str(desk / "at.pt"), "--smoothed", "3", "--steps", "3", *options) == 0
    said, numbers = capsys.readouterr(), json.loads((tmp_path / "s.json").read_text())
    assert "mean of 3 random transformations" in said.out
    assert "something random" not in said.err  # it is random on purpose
    assert "no sign" not in said.out
    assert numbers["smoothed"] == 3
    assert numbers["random_network"]


def test_extract_says_that_a_smallest_perturbation_may_be_beyond_eps(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--samples", "20", "--out", str(tmp_path / "f.h5"), "--attack"]
    assert run("extract", "--model", str(desk / "at.pt"), *options, "fab,steps=3,eps=0.01") == 0
    said = capsys.readouterr()
    assert (
        "fab keeps the smallest perturbation of each image, beyond its eps" in said.err + said.out
    )
