"""A study run: kept, continued after a kill, and made again only where something changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from study_small import PRESET, assert_same, carry_on, numbers, preset, ready

from repsim.checkpoint import read_plain
from repsim.errors import UserError
from repsim.evaluate import accuracy_interval
from repsim.files import writer
from repsim.progress import Silent
from repsim.result.pairs import load_pairs
from repsim.study.api import claimed
from repsim.study.measure import shared_networks
from repsim.study.shared import Mixture, shared_attack
from repsim.study.study import read_study

NETWORKS = ["sl-st-0", "sl-at-0", "untrained-0"]
STAGES = [
    *(f"{kind}-{name}" for kind in ("train", "evaluate") for name in NETWORKS),
    "shared", "compare", "within", *(f"probe-{name}" for name in NETWORKS),
    "accuracy", "agreement", "findings",
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, file: Path) -> Path:
    """A study that ran through without interruption, up to its findings."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    assert carry_on(ready(folder, file)) == STAGES
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


def test_what_is_there(finished: Path) -> None:
    """The files of the contract, and numbers that agree with one another."""
    study = read_study(finished)
    assert [one["name"] for one in study["networks"]] == NETWORKS
    assert [one["source"] for one in study["networks"]] == ["trained", "trained", "untrained"]
    assert {stage["name"]: stage["status"] for stage in study["stages"]} == {
        **dict.fromkeys(STAGES, "done"), "report": "to do",
    }  # fmt: skip
    assert all(stage["seconds"] >= 0 for stage in study["stages"] if stage["status"] == "done")
    pairs = load_pairs(finished / "similarity.h5")
    sides = {key[:2] for key in pairs.keys}
    assert sides == {(n, c) for n in NETWORKS for c in ("clean", "noise", "pgd", "shared")}
    assert pairs.pairs.replicates is not None
    assert load_pairs(finished / "within.h5").keys == pairs.keys
    accuracy = pd.read_csv(finished / "accuracy.csv")
    assert set(accuracy["condition"]) == {"clean", "pgd", "noise", "shared"}
    predictions = pd.read_csv(finished / "predictions.csv")
    row = accuracy[(accuracy.network == "sl-st-0") & (accuracy.condition == "shared")].iloc[0]
    right = int((predictions["sl-st-0:shared"] == predictions["label"]).sum())
    assert row.accuracy == right / 50
    assert [row.lower, row.upper] == pytest.approx(accuracy_interval(right, 50))
    clean = accuracy[(accuracy.network == "sl-st-0") & (accuracy.condition == "clean")].iloc[0]
    assert clean.accuracy == (predictions["sl-st-0:clean"] == predictions["label"]).mean()
    agreement = pd.read_csv(finished / "agreement.csv", keep_default_na=False)
    told = agreement[(agreement.what == "prediction") & (agreement.condition == "pgd")]
    assert len(told) == 3
    same = (predictions["sl-st-0:pgd"] == predictions["sl-at-0:pgd"]).mean()
    assert float(told[(told.a == "sl-st-0") & (told.b == "sl-at-0")].agreement.iloc[0]) == same
    probed = agreement[agreement.what == "probe"]
    assert set(probed.layer) == {key[2] for key in pairs.keys}
    assert set(probed.condition) == {"clean", "noise", "pgd", "shared"}
    assert len(json.loads((finished / "findings.json").read_text())) == 8
    assert not list(finished.rglob("*.tmp*"))


def test_shared_images_are_one_set_for_all(finished: Path, file: Path) -> None:
    study = ready(finished, file).study
    assert shared_networks(study) == ["sl-st-0", "sl-at-0"]  # never the untrained one
    data = study.test(50)
    spec = shared_attack(finished / "shared.h5")
    images = data.images.float() / 255
    look = {"ids": data.keys, **spec.params}
    given = spec.function(None, images, data.labels, **look)
    moved = (given - images).abs().flatten(1).amax(1)
    assert (moved > 0.05).all()
    assert moved.max() <= study.eps + 1e-6
    turned = torch.arange(50).flip(0)
    back = spec.function(
        None, images[turned], data.labels[turned], **{**look, "ids": data.keys[turned]}
    )
    assert torch.equal(back, given[turned])
    other = study.test(60)
    with pytest.raises(UserError, match="of 50 images; 10 others are asked for"):
        spec.function(
            None, other.images.float(), other.labels, **{**look, "ids": other.keys}
        )  # fmt: skip


def test_the_mixture_is_the_mean_of_the_softmax() -> None:
    """Its gradient weighs a network by what it still gives to the true class."""
    torch.manual_seed(0)
    nets = [torch.nn.Linear(4, 3, dtype=torch.float64) for _ in range(3)]
    images = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    found = Mixture(nets)(images)
    mean = torch.stack([net(images).softmax(1) for net in nets]).mean(0)
    torch.testing.assert_close(found.exp().double(), mean, rtol=1e-5, atol=1e-6)
    nets[0].weight.data.zero_()
    nets[0].bias.data = torch.tensor([-60.0, 0.0, 0.0], dtype=torch.float64)  # fooled already
    both = torch.autograd.grad(Mixture(nets[:2])(images)[:, 0].sum(), images)[0]
    alone = torch.autograd.grad(nets[1](images).log_softmax(1)[:, 0].sum(), images)[0]
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_a_second_run_does_nothing(copy: Path, file: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.*") if path.is_file()}
    assert carry_on(ready(copy, file)) == []
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*.*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {"study.json", ".lock"} or changed == {"study.json"}


@pytest.mark.parametrize(
    ("setting", "made"),
    [
        ("evaluate.samples=30",
         [*(f"evaluate-{name}" for name in NETWORKS), "accuracy", "findings"]),
        ("within.samples=40", ["within", "findings"]),
        ("probe.train=80", [*(f"probe-{name}" for name in NETWORKS), "agreement", "findings"]),
        ("margin=0.05", ["findings"]),
        ("evaluate.batch_size=16", []),
    ],
)  # fmt: skip
def test_a_changed_setting_makes_what_depends_on_it(
    copy: Path, file: Path, setting: str, made: list[str]
) -> None:
    assert carry_on(ready(copy, file, [setting])) == made
    assert carry_on(ready(copy, file, [setting])) == []


def test_another_network_leaves_the_others(copy: Path, tmp_path: Path) -> None:
    """Their trainings, evaluations, probes and Gram matrices are kept."""
    more = preset(tmp_path, PRESET + '\n[[network]]\nname = "more"\nseeds = 1\n')
    prepared = ready(copy, more, stop_after="compare")
    assert carry_on(prepared) == ["train-more-0", "compare"]
    record = prepared.records.read(prepared.records.stages["compare"])
    assert record is not None
    assert (record["grams_made"], record["grams_reused"]) == (4, 12)


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("similarity.h5", {"compare"}),
        ("evaluations/sl-at-0.json", {"evaluate-sl-at-0"}),
        ("probes/sl-st-0.h5", {"probe-sl-st-0"}),
        ("stages/accuracy.json", {"accuracy"}),
    ],
)
def test_what_was_damaged_is_made_again(
    copy: Path, finished: Path, file: Path, path: str, made: set[str]
) -> None:
    damaged = copy / path
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert set(carry_on(ready(copy, file))) >= made
    assert_same(numbers(copy), numbers(finished))


class Killed(Silent):
    """Ends the process, as far as the study can tell, after some steps of training."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def task(self, what: str, total: int, *, done: int = 0, unit: str = "it"):  # type: ignore[no-untyped-def]
        from contextlib import contextmanager

        from repsim.progress import Task

        def advance(n: int) -> None:
            self.left -= n
            if self.left <= 0:
                raise KeyboardInterrupt

        @contextmanager
        def one():  # type: ignore[no-untyped-def]
            yield Task(advance if what.startswith("training") else lambda n: None)

        return one()


def test_a_killed_training_goes_on(finished: Path, file: Path, tmp_path: Path) -> None:
    """Killed in the second epoch of the second network: the first is kept, it continues."""
    folder = tmp_path / "study"
    prepared = ready(folder, file, stop_after="train")
    prepared.study.progress = Killed(6 + 4)
    with pytest.raises(KeyboardInterrupt):
        carry_on(prepared)
    assert (folder / "checkpoints/sl-at-0.pt.resume").is_file()
    assert not (folder / "checkpoints/sl-at-0.pt").exists()
    assert not (folder / "stages/train-sl-at-0.json").exists()
    assert read_study(folder)["stages"][0]["status"] == "done"
    assert carry_on(ready(folder, file)) == STAGES[1:]
    for name in NETWORKS:
        ours, theirs = (read_plain(f / f"checkpoints/{name}.pt") for f in (folder, finished))
        for key, value in ours["state_dict"].items():
            assert torch.equal(value, theirs["state_dict"][key])
    # Checkpoints hold their seconds, so the files differ; what is measured does not.
    mine, whole = numbers(folder), numbers(finished)
    assert_same(mine, whole)


@pytest.mark.parametrize("stage", ["compare", "agreement"])
def test_an_error_in_a_stage_leaves_the_others(
    copy: Path, finished: Path, file: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repsim.study import run as module

    for path in ("similarity.h5", "agreement.csv"):
        (copy / path).unlink()

    def work(study: object, one: object) -> dict[str, object]:
        if one.name == stage:  # type: ignore[attr-defined]
            (copy / f".similarity.h5.{writer()}.tmp.h5").write_text("half")
            raise UserError("it went wrong")
        return real(study, one)  # type: ignore[arg-type]

    real = module.work
    monkeypatch.setattr(module, "work", work)
    with pytest.raises(UserError, match="it went wrong"):
        carry_on(ready(copy, file))
    assert not (copy / f"stages/{stage}.json").exists()
    monkeypatch.setattr(module, "work", real)
    made = carry_on(ready(copy, file))
    assert stage in made
    assert not any(name.startswith(("train", "probe", "evaluate")) for name in made)
    assert_same(numbers(copy), numbers(finished))
    assert not list(copy.rglob(".*.tmp*"))


def test_a_stage_whose_inputs_are_not_done_says_so(file: Path, tmp_path: Path) -> None:
    from repsim.study.run import run_stage

    prepared = ready(tmp_path / "study", file)
    with pytest.raises(UserError, match="stage compare expects train-sl-st-0, which is not done"):
        run_stage(prepared.study, prepared.records.stages["compare"], prepared.records)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "study"),
        pytest.raises(UserError, match="another repsim reproduce is running there"),
        claimed(tmp_path / "study"),
    ):
        pass
    with claimed(tmp_path / "study"):
        pass
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="expects a folder that can be written"),
        claimed(tmp_path / "file"),
    ):
        pass
