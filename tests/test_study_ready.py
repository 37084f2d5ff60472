"""Networks that are there already: known by what stands inside their checkpoints."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from study_small import PRESET, carry_on, preset, ready

from repsim.checkpoint import read_plain
from repsim.data import draw, load_data
from repsim.errors import UserError
from repsim.files import sha256_of
from repsim.study.api import Prepared, prepare, reproduce
from repsim.study.command import Wish
from repsim.study.ready import find_ready, is_the_same, wanted
from repsim.study.study import Machine, read_study
from repsim.train import plan, train

CL = """
[[network]]
name = "cl-at"
recipe = "cpu-cl-at"
encoder = { attack = "contrastive,steps=1", augment = "none" }
head = { epochs = 1 }

[[network]]
name = "cl-full-at"
recipe = "cpu-cl-full-at"
init = "cl-at"
head = { attack = "pgd,steps=1", epochs = 1, augment = "none" }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose networks are trained."""
    folder = tmp_path_factory.mktemp("trained")
    text = PRESET.replace("epochs = 2", "epochs = 1") + CL
    carry_on(ready(folder / "study", preset(folder, text), stop_after="train"))
    return folder


def again(trained: Path, folder: Path, *settings: str) -> Prepared:
    """The same study elsewhere, with the first one's networks at hand."""
    return ready(
        folder / "again", trained / "tiny.toml", settings, stop_after="train",
        checkpoints=(trained / "study/checkpoints",),
    )  # fmt: skip


def test_networks_are_taken_where_their_settings_are_the_same(
    trained: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "ready"
    elsewhere.mkdir()
    for number, path in enumerate(sorted((trained / "study/checkpoints").glob("*.pt"))):
        (elsewhere / f"{number}.pt").write_bytes(path.read_bytes())  # names say nothing
    (elsewhere / "other.pt").write_text("no checkpoint")
    torch.save({"w": torch.zeros(1)}, elsewhere / "weights.pt")
    prepared = ready(tmp_path / "again", trained / "tiny.toml", stop_after="train",
                     checkpoints=(elsewhere,))  # fmt: skip
    carry_on(prepared)
    networks = {one["name"]: one for one in read_study(tmp_path / "again")["networks"]}
    first = {one["name"]: one for one in read_study(trained / "study")["networks"]}
    assert {one["source"] for name, one in networks.items() if name != "untrained-0"} == {
        "checkpoints"
    }
    assert {one["source"] for one in first.values()} == {"trained", "untrained"}
    for name, one in networks.items():
        if name != "untrained-0":
            assert one["sha256"] == first[name]["sha256"]


@pytest.mark.parametrize(
    ("setting", "lost"),
    [
        ("encoder.lr=0.05", {"sl-st-0", "sl-at-0", "cl-at-0", "cl-full-at-0"}),
        ("samples=190", {"sl-st-0", "sl-at-0", "cl-at-0", "cl-full-at-0"}),
        ("model=resnet20", {"sl-st-0", "sl-at-0", "cl-at-0", "cl-full-at-0"}),
        ("head.lr=0.05", {"cl-at-0", "cl-full-at-0"}),
        ("compare.samples=60", set()),
    ],
)
def test_others_are_not(trained: Path, tmp_path: Path, setting: str, lost: set[str]) -> None:
    study = again(trained, tmp_path, setting).study
    found = {
        one.name for one in study.networks
        if one.scheme != "untrained" and find_ready(study, one) is None
    }  # fmt: skip
    assert found == lost


def test_another_seed_or_size_of_attack_is_another_network(trained: Path, tmp_path: Path) -> None:
    study = again(trained, tmp_path).study
    for one in study.networks:
        if one.scheme == "untrained":
            continue
        assert find_ready(study, one) is not None
        assert find_ready(study, replace(one, seed=7)) is None
    at = study.network("sl-at-0")
    assert at.kind is not None
    assert find_ready(study, replace(at, kind=replace(at.kind, eps="0.1"))) is None


def test_records_of_earlier_versions_are_understood(trained: Path, tmp_path: Path) -> None:
    """They lack a setting that came later, and say little of where a network started."""
    study = again(trained, tmp_path).study
    cl, full = (study.network(name) for name in ("cl-at-0", "cl-full-at-0"))
    files = {one.name: study.machine.checkpoints[0] / f"{one.name}.pt" for one in (cl, full)}

    def meta(name: str) -> dict[str, Any]:
        return copy.deepcopy({k: v for k, v in read_plain(files[name]).items()
                              if k != "state_dict"})  # fmt: skip

    old = meta("cl-at-0")
    for phase in old["config"]["phases"]:
        del phase["exclude_1d"]
    old["config"]["phases"][0]["attack"]["params"]["temperature"] = 0.5
    old["config"]["phases"][0]["attack"]["params"]["eps"] *= 1 + 1e-12
    assert is_the_same(old, wanted(study, cl))
    old["config"]["phases"][0]["attack"]["params"]["steps"] = 2
    assert not is_the_same(old, wanted(study, cl))
    old = meta("cl-at-0")
    old["config"]["phases"][0]["exclude_1d"] = False
    assert not is_the_same(old, wanted(study, cl))

    start = {**meta("cl-at-0"), "sha256": sha256_of(files["cl-at-0"])}
    about = wanted(study, full)
    assert is_the_same(meta("cl-full-at-0"), about, start)
    assert not is_the_same(meta("cl-full-at-0"), about)  # it started from another
    assert not is_the_same(meta("cl-at-0"), wanted(study, cl), start)
    old = meta("cl-full-at-0")
    old["init"] = {"name": "cl-at-0.encoder", "sha256": "another file"}
    assert is_the_same(old, about, start, loose=True)
    assert not is_the_same(old, about, start)  # of the study's own
    old["init"] = {**old["init"], "scheme": "cl", "scenario": "st", "attack": None}
    assert not is_the_same(old, about, start, loose=True)


def test_a_second_phase_goes_with_the_first_that_was_trained_again(
    trained: Path, tmp_path: Path
) -> None:
    """Its file says the same scheme, scenario and attack, but it started from another training."""
    folder = Path(shutil.copytree(trained / "study", tmp_path / "study"))
    other = ["seeds=1", "encoder.lr=0.05"]
    assert set(carry_on(ready(folder, trained / "tiny.toml", other, stop_after="train"))) == {
        "train-sl-st-0", "train-sl-at-0", "train-cl-at-0", "train-cl-full-at-0",
    }  # fmt: skip
    start = sha256_of(folder / "checkpoints/cl-at-0.pt")
    assert read_plain(folder / "checkpoints/cl-full-at-0.pt")["init"]["sha256"] == start
    assert start != sha256_of(trained / "study/checkpoints/cl-at-0.pt")


def test_a_ready_second_phase_may_have_started_from_a_file_that_is_not_kept(
    trained: Path, tmp_path: Path
) -> None:
    """As those of checkpoints/, which started from encoders: but only beside a ready start."""
    there = tmp_path / "ready"
    there.mkdir()
    start, second = (trained / f"study/checkpoints/{name}-0.pt" for name in ("cl-at", "cl-full-at"))
    content = read_plain(second)
    content["init"]["sha256"] = "of an encoder without its head"
    torch.save(content, there / "second.pt")
    shutil.copy(start, there / "start.pt")

    def source(folder: str) -> list[str]:
        prepared = ready(tmp_path / folder, trained / "tiny.toml", stop_after="train-cl-full-at-0",
                         checkpoints=(there,))  # fmt: skip
        carry_on(prepared)
        networks = read_study(tmp_path / folder)["networks"]
        return [one["source"] for one in networks if one["name"].startswith("cl-")]

    assert source("a") == ["checkpoints", "checkpoints"]
    (tmp_path / "a/stages/train-cl-full-at-0.json").unlink()
    assert source("a") == ["checkpoints", "checkpoints"]
    (there / "start.pt").unlink()
    assert source("b") == ["trained", "trained"]


def test_a_precision_that_is_asked_for_counts(trained: Path, tmp_path: Path) -> None:
    study = again(trained, tmp_path).study
    one = study.network("sl-st-0")
    study.settings = replace(study.settings, precision="float32")
    assert find_ready(study, one) is not None
    study.settings = replace(study.settings, precision="bf16")
    assert find_ready(study, one) is None


def test_own_networks_of_repsim_and_foreign_ones(
    trained: Path, tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    """A study of them alone: their checkpoints come into its folder, in one form."""
    content = read_plain(checkpoints["at"])
    torch.save({"module." + k: v for k, v in content["state_dict"].items()}, tmp_path / "w.pth")
    (tmp_path / "mine.toml").write_text(
        f"[[network]]\nname = 'st'\ncheckpoint = '{checkpoints['st']}'\nscheme = 'sl'\n"
        "scenario = 'st'\n"
        "[[network]]\nname = 'at'\ncheckpoint = 'w.pth'\nscheme = 'sl'\nscenario = 'at'\n"
        f"eps = '0.15'\narch = 'resnet8'\nmean = {content['mean']}\nstd = {content['std']}\n"
    )
    wish = Wish(str(trained / "tiny.toml"), tmp_path / "study", models=tmp_path / "mine.toml",
                settings=["evaluate.samples=100"])  # fmt: skip
    reproduce(wish, Machine(device="cpu"), stop_after="accuracy")
    study = read_study(tmp_path / "study")
    found = {one["name"]: (one["source"], one["from"], one["eps"]) for one in study["networks"]}
    assert found == {
        "st": ("own", "st.pt", None), "at": ("own", "w.pth", 0.15),
        "untrained-0": ("untrained", None, None),
    }  # fmt: skip
    table = (tmp_path / "study/accuracy.csv").read_text()
    assert {line.split(",")[0] for line in table.splitlines()[1:]} == set(found)
    # The foreign one is the same network as the checkpoint that its weights are of.
    direct = (tmp_path / "mine.toml").read_text().replace("w.pth", str(checkpoints["at"]))
    (tmp_path / "direct.toml").write_text(direct.partition("arch =")[0])
    other = replace(wish, folder=tmp_path / "other", models=tmp_path / "direct.toml")
    reproduce(other, Machine(device="cpu"), stop_after="accuracy")
    assert (tmp_path / "other/accuracy.csv").read_text() == table
    # Another file in its place is another network.
    (tmp_path / "w.pth").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"w\.pth: expected a checkpoint"):
        prepare(wish, Machine(device="cpu"))


def test_a_network_that_does_not_fit_the_data_is_refused(trained: Path, tmp_path: Path) -> None:
    images = load_data("digits", "train")
    few = replace(images.take(torch.arange(64)), labels=images.labels[:64] % 2,
                  classes=("even", "odd"), source_fingerprint=None)  # fmt: skip
    train(few, "resnet8", tmp_path / "two.pt", plan("digits", epochs=1, batch_size=32))
    (tmp_path / "mine.toml").write_text(
        "[[network]]\nname = 'two'\ncheckpoint = 'two.pt'\nscheme = 'sl'\nscenario = 'st'\n"
    )
    wish = Wish(str(trained / "tiny.toml"), tmp_path / "study", models=tmp_path / "mine.toml")
    with pytest.raises(UserError, match=r"network two takes images .* in 2 classes; digits has"):
        reproduce(wish, Machine(device="cpu"))


def own(tmp_path: Path, text: str) -> Wish:
    (tmp_path / "mine.toml").write_text(text)
    return Wish(str(tmp_path / "tiny.toml"), tmp_path / "study", models=tmp_path / "mine.toml")


def row(checkpoint: Path | str, more: str = "", scenario: str = "st") -> str:
    return (
        f"[[network]]\nname = 'mine'\ncheckpoint = '{checkpoint}'\nscheme = 'sl'\n"
        f"scenario = '{scenario}'\n{more}"
    )


def test_others_checkpoints_with_entries_of_the_same_names(
    tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    """PyTorch's ImageNet example saves `arch` beside the weights; others their attack's name."""
    preset(tmp_path)
    content = read_plain(checkpoints["at"])
    weights = {f"module.{key}": value for key, value in content["state_dict"].items()}
    example = {"epoch": 90, "arch": "resnet50", "state_dict": weights, "attack": "pgd"}
    torch.save(example, tmp_path / "w.pth")
    prepared = prepare(
        own(tmp_path, row("w.pth", "arch = 'resnet8'\neps = '0.15'\n", "at")),
        Machine(device="cpu"), stop_after="train",
    )  # fmt: skip
    assert [one.arch for one in prepared.study.networks] == ["resnet8", "resnet8"]
    with pytest.raises(UserError, match=r"w\.pth is not of repsim train; add its arch"):
        prepare(own(tmp_path, row("w.pth")), Machine(device="cpu"))


def test_the_control_has_the_arguments_of_the_architecture(tmp_path: Path) -> None:
    preset(tmp_path)
    images = draw(load_data("digits", "train"), 64)
    train(images, "wide_resnet", tmp_path / "wide.pt", plan("digits", epochs=1, batch_size=32),
          arch_args={"depth": 10, "widen": 1})  # fmt: skip
    prepared = prepare(own(tmp_path, row("wide.pt")), Machine(device="cpu"), stop_after="train")
    carry_on(prepared)
    mine, control = (read_plain(tmp_path / f"study/checkpoints/{name}.pt")
                     for name in ("mine", "untrained-0"))  # fmt: skip
    assert control["arch_args"] == {"depth": 10, "widen": 1}
    shapes = [{key: value.shape for key, value in one["state_dict"].items()}
              for one in (mine, control)]  # fmt: skip
    assert shapes[0] == shapes[1]


def test_own_networks_are_looked_at_before_anything_is_trained(
    tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    preset(tmp_path)
    content = read_plain(checkpoints["st"])

    def with_preset(file: str, **changed: Any) -> Wish:
        torch.save({**content, **changed}, tmp_path / file)
        return own(tmp_path, "preset = true\n" + row(file, "seed = 5\n"))

    first = prepare(with_preset("whole.pt"), Machine(device="cpu"))
    assert first.names[0] == "train-mine"
    assert first.notes == prepare(with_preset("whole.pt"), Machine(device="cpu")).notes
    for changed, said in (
        ({"head": []}, "has none; train one first"),
        ({"channels": 3}, "network mine"),
        ({"image_size": 16}, "network mine takes images of shape"),
    ):
        with pytest.raises(UserError, match=said):
            prepare(with_preset("wrong.pt", **changed), Machine(device="cpu"))  # type: ignore[arg-type]
    foreign = own(tmp_path, row("w.pth", "arch = 'resnet20'\n"))
    torch.save(content["state_dict"], tmp_path / "w.pth")
    with pytest.raises(UserError, match="network mine: w: the weights are expected to fit"):
        prepare(foreign, Machine(device="cpu"))
    data = {"name": "letters", "fingerprint": "another", "samples": 3}
    notes = prepare(with_preset("letters.pt", data=data), Machine(device="cpu")).notes
    assert notes[0].startswith("mine was trained on letters, whose images are as large")
