"""A store holds what a plain forward with hooks gives, however often its making was cut off."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repsim.extract.pipeline
import repsim.store.write
from repsim.attacks import AttackSpec, parse_attack
from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, as_image_data, draw, to_float
from repsim.errors import UserError
from repsim.extract import ExtractReport, estimate_bytes, extract
from repsim.extract.pipeline import is_finite
from repsim.hooks import select_layers
from repsim.models import Normalized
from repsim.progress import Silent
from repsim.store import Part, open_store

EPS = 0.15
BATCH = 16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The same sums in the same order here and in the processes that are killed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> LoadedModel:
    return untrained(0)


@pytest.fixture(scope="module")
def images(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 56)  # three batches and a half


def untrained(seed: int) -> LoadedModel:
    return load_model("resnet8", channels=1, image_size=8, mean=[0.3], std=[0.35], seed=seed)


def attack(text: str) -> AttackSpec:
    return parse_attack(text, eps=EPS)


PGD = attack("pgd,steps=3")
FGSM = attack("fgsm")


def wrap(encoder: nn.Module, sha256: str = "test") -> LoadedModel:
    meta = {"arch": "test", "head": ["linear"], "classes": [str(i) for i in range(10)]}
    return LoadedModel(Normalized(encoder, [0.0], [1.0]).eval(), meta, sha256, "net")


def content(path: Path) -> dict[str, tuple[str, bytes]]:
    """Every data set of a file, bit for bit."""
    found = {}
    with h5py.File(path) as file:

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = (f"{item.dtype} {item.shape}", item[()].tobytes())

        file.visititems(visit)
    return found


def features_by_hooks(model: Normalized, inputs: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What the named modules give, by a plain forward; copied at once."""
    found: dict[str, Tensor] = {}
    modules = dict(model.encoder.named_modules())
    hooks = []
    for name in names:

        def hook(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
            found.setdefault(name, output.clone().flatten(1))

        hooks.append(modules[name].register_forward_hook(hook))
    with torch.no_grad():
        found["logits"] = model(inputs)
    for handle in hooks:
        handle.remove()
    return found


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA in float64 (Kornblith et al. 2019)."""
    x, y = (v.astype(np.float64) - v.astype(np.float64).mean(0) for v in (x, y))
    k, j = x @ x.T, y @ y.T
    return float((k * j).sum() / np.sqrt((k * k).sum() * (j * j).sum()))


# What is in it


def test_a_store_holds_what_a_plain_forward_gives(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    report = extract(network, images, [PGD], tmp_path / "f.h5", batch_size=BATCH)
    assert report.status == "written"
    with open_store(tmp_path / "f.h5") as store:
        assert store.conditions == ["clean", "noise", "pgd"]
        assert (store.ids == images.ids).all()
        assert (store.labels == images.labels.numpy()).all()
        assert (store.index == images.index.numpy()).all()
        chosen = select_layers(network.model, to_float(images.images[:2])).layers
        assert store.layers == [layer.name for layer in chosen] == report.layers
        clean = to_float(images.images)
        assert torch.equal(store.inputs("clean"), clean)
        right_clean = np.ones(len(images), dtype=bool)
        for name in store.conditions:
            inputs = store.inputs(name)
            logits, loss, moved, norm = (
                store.column(name, c) for c in ("logits", "loss", "moved", "norm")
            )
            assert logits is not None
            assert loss is not None
            assert moved is not None
            assert norm is not None
            for start in range(0, len(images), BATCH):
                rows = slice(start, start + BATCH)
                expected = features_by_hooks(network.model, inputs[rows], store.layers)
                assert np.array_equal(logits[rows], expected["logits"].numpy())
                for layer in store.layers:
                    stored = store.representation(name, layer).rows(start, start + BATCH)
                    assert np.array_equal(stored, expected[layer].half().float().numpy())
            reference = nn.functional.cross_entropy(
                torch.from_numpy(logits), images.labels, reduction="none"
            )
            np.testing.assert_allclose(loss, reference.numpy(), rtol=1e-6)
            delta = (inputs - clean).flatten(1)
            assert np.array_equal(norm, delta.abs().amax(1).numpy())
            assert np.array_equal(moved, (delta != 0).any(1).numpy())
            assert moved.all() == (name != "clean")
            right = logits.argmax(1) == images.labels.numpy()
            right_clean = right if name == "clean" else right_clean
            correct = int((right & right_clean).sum())
            assert (report.accuracy[name].correct, report.accuracy[name].samples) == (
                correct, len(images),
            )  # fmt: skip
            assert report.accuracy[name].value == correct / len(images)
        for layer in chosen:
            assert store.representation("clean", layer.name).shape == layer.shape
        assert store.attack("pgd") == PGD.to_json()
        assert store.column("pgd", "first_success") is not None
        assert store.column("noise", "first_success") is None
    assert report.bytes == (tmp_path / "f.h5").stat().st_size
    assert list(tmp_path.iterdir()) == [tmp_path / "f.h5"]


def test_the_network_is_left_as_it_was(images: ImageData, tmp_path: Path) -> None:
    network = untrained(1)
    before = {k: v.clone() for k, v in network.model.state_dict().items()}
    wanted = next(network.model.parameters())
    wanted.requires_grad_(False)
    extract(network, images, [PGD], tmp_path / "f.h5", batch_size=BATCH)
    assert all(torch.equal(v, before[k]) for k, v in network.model.state_dict().items())
    assert [p.requires_grad for p in network.model.parameters()].count(False) == 1
    assert all(p.grad is None for p in network.model.parameters())


def test_the_batch_size_changes_no_draw(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    for size in (5, 56):
        extract(network, images, [PGD], tmp_path / f"{size}.h5", batch_size=size)
    with open_store(tmp_path / "5.h5") as five, open_store(tmp_path / "56.h5") as all_:
        assert torch.equal(five.inputs("noise"), all_.inputs("noise"))
        # The gradient's sign flips where rounding decides it; elsewhere nothing may change.
        apart = (five.inputs("pgd") - all_.inputs("pgd")).abs() > 1e-5
        assert apart.float().mean() < 1e-3
        for layer in five.layers:
            one, other = (s.representation("pgd", layer).rows(0, 56) for s in (five, all_))
            assert cka(one, other) > 0.999


def test_rows_follow_the_data_not_the_source(
    network: LoadedModel, digits_test: ImageData, tmp_path: Path
) -> None:
    """The same draw from a shuffled source: the same store, but for the positions in the source."""
    shuffled = digits_test.take(torch.randperm(len(digits_test)))
    shuffled = replace(shuffled, index=torch.arange(len(shuffled)))
    for name, source in (("a", digits_test), ("b", shuffled)):
        extract(network, draw(source, 40), [PGD], tmp_path / f"{name}.h5", batch_size=BATCH)
    one, other = content(tmp_path / "a.h5"), content(tmp_path / "b.h5")
    assert {name for name in one if one[name] != other[name]} == {"samples/index"}


@pytest.mark.parametrize("reduce", ["avgpool", "project:40"])
def test_reduced_layers(
    network: LoadedModel, images: ImageData, tmp_path: Path, reduce: str
) -> None:
    extract(network, images, [], tmp_path / "f.h5", reduce=reduce, dtype="float32")
    extract(network, images, [], tmp_path / "g.h5", dtype="float32")
    with open_store(tmp_path / "f.h5") as reduced, open_store(tmp_path / "g.h5") as whole:
        assert reduced.conditions == ["clean"]  # no attack, so no control of its size
        for layer in reduced.layers:
            kept = reduced.representation("clean", layer)
            full = whole.representation("clean", layer)
            assert kept.shape == full.shape
            rows, expected = kept.rows(0, 56), full.rows(0, 56)
            if reduce == "avgpool" and len(full.shape) == 3:
                np.testing.assert_allclose(
                    rows, expected.reshape(56, *full.shape).mean((2, 3)), rtol=1e-5, atol=1e-6
                )
            elif reduce != "avgpool":
                assert kept.features == min(40, full.features)


def test_bf16_and_float32_are_two_requests(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    from repsim.runtime import Runtime

    half = Runtime.of("cpu", "bf16")
    extract(network, images, [], tmp_path / "f.h5", runtime=half)
    with open_store(tmp_path / "f.h5") as store:
        logits = store.column("clean", "logits")
        assert logits is not None
        assert (logits == torch.from_numpy(logits).bfloat16().float().numpy()).all()
    with pytest.raises(UserError, match=r"precision bf16 there, float32 asked"):
        extract(network, images, [], tmp_path / "f.h5")


# Types


class Offset(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


class Shifted(nn.Module):
    """A network with a layer whose mean is thousands of times its spread."""

    def __init__(self, by: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = 3e-4 * by  # so that float16's steps are as large as the spread
        self.conv = nn.Conv2d(1, 6, 3)
        self.up, self.down = Offset(by), Offset(-by)
        self.second = nn.Conv2d(6, 4, 3)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.down(self.up(self.scale * self.conv(x))))
        logits: Tensor = self.linear(x.flatten(1))
        return logits


@pytest.mark.parametrize(("by", "reason"), [(1e4, "65504"), (2e3, "mean")])
def test_a_layer_with_an_offset_keeps_its_similarity(
    images: ImageData, tmp_path: Path, by: float, reason: str
) -> None:
    network = wrap(Shifted(by))
    report = extract(network, images, [PGD], tmp_path / "f.h5", layers="all", batch_size=BATCH)
    assert list(report.float32) == ["up"]
    assert reason in report.float32["up"]
    assert any("up" in note and "float32" in note for note in report.notes)
    with open_store(tmp_path / "f.h5") as store:
        for name in ("clean", "pgd"):
            exact = features_by_hooks(network.model, store.inputs(name), ["up"])["up"]
            found = store.representation(name, "up").rows(0, 56)
            assert np.array_equal(found, exact.numpy())
            second = store.representation(name, "second").rows(0, 56)
            expected = cka(store.representation(name, "conv").rows(0, 56), second)
            assert cka(found, second) == pytest.approx(expected, abs=1e-3)
            # What float16 would do.
            assert abs(cka(exact.half().numpy(), second) - expected) > 0.2


def test_float32_for_all_layers_on_demand(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    report = extract(network, images, [], tmp_path / "f.h5", dtype="float32")
    assert set(report.float32) == set(report.layers)
    with open_store(tmp_path / "f.h5") as store:
        expected = features_by_hooks(network.model, to_float(images.images), store.layers)
        for layer in store.layers:
            stored = store.representation("clean", layer).rows(0, 56)
            np.testing.assert_array_equal(stored, expected[layer].numpy())


def test_is_finite_agrees_with_numpy() -> None:
    for dtype in (np.float16, np.float32):
        info = np.finfo(dtype)
        good = np.array([[0, -0.0, info.max, info.min], [info.tiny, -1, 1, 3e-8]], dtype)
        assert is_finite(good)
        assert is_finite(good[:0])
        for value in (np.inf, -np.inf, np.nan, -np.nan):
            bad = good.copy()
            bad[1, 2] = value
            assert not is_finite(bad)


# Life


def test_the_same_request_again_does_nothing(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "f.h5"
    first = extract(network, images, [PGD], out, batch_size=BATCH)
    before = (out.stat().st_mtime_ns, out.stat().st_ino)
    again = extract(network, images, [PGD], out, batch_size=7)
    assert again.status == "already done"
    assert again.accuracy == first.accuracy
    assert again.images_per_second == 0 < first.images_per_second
    assert extract(network, images, [], out).status == "already done"
    assert before == (out.stat().st_mtime_ns, out.stat().st_ino)


def test_another_attack_is_added(network: LoadedModel, images: ImageData, tmp_path: Path) -> None:
    both, step = tmp_path / "both.h5", tmp_path / "step.h5"
    extract(network, images, [PGD, FGSM], both, batch_size=BATCH)
    extract(network, images, [PGD], step, batch_size=BATCH)
    before = content(step)
    report = extract(network, images, [FGSM], step, batch_size=BATCH)
    assert report.status == "condition added"
    assert list(report.accuracy) == ["clean", "noise", "fgsm", "pgd"]
    after = content(step)
    assert {name: after[name] for name in before} == before
    assert after == content(both)
    assert extract(network, images, [FGSM, PGD], step).status == "already done"


def test_an_attack_of_another_size_keeps_the_first_control(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "f.h5"
    extract(network, images, [FGSM], out)
    wide = attack("fgsm,norm=l2,eps=0.5,as=wide")
    report = extract(network, images, [wide], out)
    assert any("size of an earlier attack" in note for note in report.notes)
    with open_store(out) as store:
        assert store.conditions == ["clean", "noise", "fgsm", "wide"]
        assert store.norm("wide") == "l2"
        norm = store.column("wide", "norm")
        assert norm is not None
        assert norm.max() <= 0.5 + 1e-5
    own = attack("noise,norm=l2,eps=0.5,as=noise-l2")
    report = extract(network, images, [own], out)
    assert report.status == "condition added"
    with open_store(out) as store:
        assert store.kind("noise-l2") == "control"


def test_no_control_if_not_wanted(network: LoadedModel, images: ImageData, tmp_path: Path) -> None:
    report = extract(network, images, [PGD], tmp_path / "f.h5", control=False)
    assert list(report.accuracy) == ["clean", "pgd"]
    report = extract(network, images, [attack("noise"), PGD], tmp_path / "g.h5")
    assert list(report.accuracy) == ["clean", "noise", "pgd"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "seed 0 there, 1 asked"),
        ({"reduce": "avgpool"}, "reduce flatten there, avgpool asked"),
        ({"dtype": "float32"}, "dtype auto there, float32 asked"),
        ({"layers": "all"}, "layers 5 .* there, .* asked"),
        ({"attacks": [attack("pgd,steps=4")]}, "condition pgd .* params.steps 3 there, 4 asked"),
        ({"loaded": 5}, "model untrained:resnet8:0 there, untrained:resnet8:5 asked"),
        ({"data": range(30)}, "samples 56 there, 30 asked"),
        ({"data": range(55, -1, -1)}, "rows .* there, .* asked"),
    ],
)
def test_anything_else_is_refused_and_can_be_overwritten(
    network: LoadedModel,
    images: ImageData,
    tmp_path: Path,
    changed: dict[str, Any],
    said: str,
) -> None:
    out = tmp_path / "f.h5"
    extract(network, images, [PGD], out)
    before = out.read_bytes()
    if "loaded" in changed:
        changed = {"loaded": untrained(changed["loaded"])}
    if "data" in changed:
        changed = {"data": images.take(np.array(changed["data"]))}
    asked: dict[str, Any] = {"loaded": network, "data": images, "attacks": [PGD], **changed}
    with pytest.raises(UserError, match=said) as caught:
        extract(out=out, **asked)
    assert "--overwrite" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
    assert extract(out=out, overwrite=True, **asked).status == "written"
    assert extract(out=out, **asked).status == "already done"


def test_a_file_that_is_no_store_is_kept(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "f.h5"
    out.write_text("my thesis")
    with pytest.raises(UserError, match="no HDF5 file"):
        extract(network, images, [], out)
    assert out.read_text() == "my thesis"


KILLS = """
import os, shutil, signal, sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import test_extract as t
import repsim.extract.pipeline as pipeline, repsim.store.write as write
from repsim.data import draw, load_data
pipeline.MARK_SECONDS = 0.0
network, images = t.untrained(0), draw(load_data("digits", "test"), t.KILLED)

def at(owner, name, times, after=False):
    real, left = getattr(owner, name), [times]
    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

for name, (moment, attacks) in t.MOMENTS.items():
    child = os.fork()
    if child == 0:
        if isinstance(moment, tuple):
            owner, *rest = moment
            at({"Part": write.Part, "write": write, "os": os, "shutil": shutil}[owner], *rest)
        out = t.Path(sys.argv[1]) / f"{name}.h5"
        t.extract(network, images, [t.attack(a) for a in attacks], out, batch_size=t.BATCH)
        os._exit(0)
    if not isinstance(moment, tuple):
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status == signal.SIGKILL or not isinstance(moment, tuple), (name, status)
"""
ONE, TWO = ["pgd,steps=1"], ["pgd,steps=1", "fgsm"]
KILLED = 40  # images: two batches and a half
# Where the process dies: at the n-th call of a function, before or after it; or after seconds.
MOMENTS: dict[str, tuple[Any, list[str]]] = {
    "before-layout": (("write", "_add", 1), ONE),
    "unsynced-layout": (("write", "_sync", 1), ONE),
    "ready": (("write", "_sync", 2, True), ONE),
    "half-a-batch": (("Part", "write", 5, True), ONE),
    "before-mark": (("Part", "mark", 2), ONE),
    "between-counters": (("write", "_sync", 6, True), ONE),
    "after-mark": (("Part", "mark", 2, True), ONE),
    "before-rename": (("os", "replace", 1), ONE),
    "some-time": (0.08, ONE),
    "some-later-time": (0.16, ONE),
    "add-copying": (("shutil", "copyfile", 1), TWO),
    "add-copied": (("shutil", "copyfile", 1, True), TWO),
    "add-layout": (("write", "_create", 5), TWO),
    "add-marked": (("Part", "mark", 2, True), TWO),
    "add-before-rename": (("os", "replace", 1), TWO),
}


def test_a_killed_run_continues_to_the_same_numbers(
    network: LoadedModel, digits_test: ImageData, tmp_path: Path
) -> None:
    images = draw(digits_test, KILLED)
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    extract(network, images, [attack(a) for a in ONE], one, batch_size=BATCH)
    extract(network, images, [attack(a) for a in TWO], two, batch_size=BATCH)
    killed = tmp_path / "killed"
    killed.mkdir()
    expected_one = content(one)
    for name, (_, attacks) in MOMENTS.items():
        if attacks == TWO:
            (killed / f"{name}.h5").write_bytes(one.read_bytes())

    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(killed), str(here)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    statuses = {}
    for name, (_, attacks) in MOMENTS.items():
        out = killed / f"{name}.h5"
        if attacks == TWO:
            assert content(out) == expected_one, name
        elif name not in ("some-time", "some-later-time"):  # a fast machine may have finished
            assert not out.exists(), name
        report = extract(network, images, [attack(a) for a in attacks], out, batch_size=BATCH)
        statuses[name] = report.status
        assert content(out) == content(one if attacks == ONE else two), name
        assert not out.with_name(f"{name}.h5.part").exists()
    assert statuses["before-layout"] == statuses["unsynced-layout"] == "written"
    assert statuses["after-mark"] == statuses["before-rename"] == "continued"
    assert statuses["add-copied"] == statuses["add-layout"] == "condition added"
    assert statuses["add-marked"] == statuses["add-before-rename"] == "continued"


def cut_off(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int = 4) -> None:
    """Writing fails after some calls; everything counts as written at once."""
    real, left = Part.write, [after]

    def write(self: Part, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error
        real(self, *arguments)

    monkeypatch.setattr(repsim.extract.pipeline, "MARK_SECONDS", 0.0)
    monkeypatch.setattr(Part, "write", write)


def test_only_what_is_left_is_computed(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    with monkeypatch.context() as patch:
        cut_off(patch, KeyboardInterrupt(), after=7)  # two batches of clean, noise and pgd
        with pytest.raises(KeyboardInterrupt):
            extract(network, images, [PGD], out, batch_size=BATCH)
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5.part"]
    # As if the kill had come between two counters: rows of pgd are there, but do not count.
    with h5py.File(tmp_path / "f.h5.part", "r+") as file:
        group = file["conditions/pgd"]
        assert group["written"][0] == 2 * BATCH
        group["written"][0] = BATCH
        group["inputs"][BATCH:] = 0
    seen: list[int] = []
    real = PGD.function

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(len(args[1]))
        return real(*args, **kwargs)

    spec = replace(PGD, function=functools.wraps(real)(counting))
    report = extract(network, images, [spec], out, batch_size=BATCH)
    assert report.status == "continued"
    assert sum(seen) == 56 - BATCH
    extract(network, images, [PGD], tmp_path / "g.h5", batch_size=BATCH)
    assert content(out) == content(tmp_path / "g.h5")


def test_a_continued_run_may_have_other_batches(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after memory ran out."""
    out = tmp_path / "f.h5"
    with monkeypatch.context() as patch:
        cut_off(patch, torch.OutOfMemoryError("out of memory"), after=4)
        with pytest.raises(torch.OutOfMemoryError):
            extract(network, images, [PGD], out, batch_size=BATCH)
    assert extract(network, images, [PGD], out, batch_size=5).status == "continued"
    with open_store(out) as store:
        expected = features_by_hooks(network.model, store.inputs("pgd"), store.layers)
        for layer in store.layers:
            stored = store.representation("pgd", layer).rows(0, 56)
            np.testing.assert_allclose(stored, expected[layer].numpy(), rtol=2e-3, atol=1e-3)


def test_unfinished_work_of_another_request_is_not_thrown_away(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, part = tmp_path / "f.h5", tmp_path / "f.h5.part"
    with monkeypatch.context() as patch:
        cut_off(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            extract(network, images, [PGD], out, batch_size=BATCH)
    before = part.read_bytes()
    for changed, said in (({"seed": 3}, "seed 0 there, 3 asked"), ({}, "pgd there, .*fgsm asked")):
        attacks = [PGD] if changed else [FGSM]
        with pytest.raises(UserError, match=said) as caught:
            extract(network, images, attacks, out, **changed)
        assert "remove that file" in str(caught.value)
        assert part.read_bytes() == before
    report = extract(network, images, [PGD], out, seed=3, overwrite=True)
    assert report.status == "written"
    assert not part.exists()


def test_a_full_disk_can_be_continued(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    real, left = repsim.store.write._sync, [8]

    def full(path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(repsim.extract.pipeline, "MARK_SECONDS", 0.0)
        patch.setattr(repsim.store.write, "_sync", full)
        with pytest.raises(UserError, match="disk is full; free some space"):
            extract(network, images, [PGD], out, batch_size=BATCH)
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5.part"]
    assert extract(network, images, [PGD], out, batch_size=BATCH).status == "continued"


# The size


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_the_size_is_foretold_and_said(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    out, heard = tmp_path / "f.h5", Heard()
    report = extract(network, images, [PGD], out, progress=heard)
    chosen = select_layers(network.model, to_float(images.images[:2])).layers
    kinds = ["clean", "control", "attack"]
    expected = estimate_bytes(chosen, 56, kinds, image_shape=(1, 8, 8))
    assert expected <= report.bytes < 1.2 * expected  # the rest is HDF5's own
    assert len(heard.lines) == 1
    assert heard.lines[0].startswith("f.h5 will take ")
    assert report.notes == []
    assert "56 samples, 5 layers, clean, noise, pgd" in heard.lines[0]
    assert "MB on disk" in heard.lines[0]


def test_too_small_a_disk_is_refused_before_any_work(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(path: Path) -> Any:
        return type("Usage", (), {"free": 100_000})

    monkeypatch.setattr(repsim.store.write.shutil, "disk_usage", tiny)
    monkeypatch.setattr(repsim.extract.pipeline.Pipeline, "run", None)  # must not be called
    with pytest.raises(UserError, match=r"expected .* MB of free disk space; there are 100 kB"):
        extract(network, images, [PGD], tmp_path / "f.h5")
    assert list(tmp_path.iterdir()) == []


# Another store's images


def test_another_networks_attacked_images(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    a, b = tmp_path / "a.h5", tmp_path / "b.h5"
    extract(network, images, [PGD, FGSM], a, batch_size=BATCH)
    other = untrained(7)
    # The same images in another order, and fewer of them.
    rows = torch.randperm(56)[:40]
    report = extract(other, images.take(rows), [], b, inputs_from=a, batch_size=BATCH)
    assert list(report.accuracy) == ["clean", "noise", "fgsm", "pgd"]
    with open_store(a) as first, open_store(b) as second:
        for name in ("noise", "pgd", "fgsm"):
            inputs = second.inputs(name)
            assert torch.equal(inputs, first.inputs(name)[rows])
            logits = second.column(name, "logits")
            expected = features_by_hooks(other.model, inputs, [])["logits"]
            np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)
            recorded = second.attack(name)
            assert recorded is not None
            assert recorded["inputs_from"]["sha256"] == network.sha256
            assert recorded["params"] == (first.attack(name) or {})["params"]
            assert second.kind(name) == first.kind(name)
    assert extract(other, images.take(rows), [], b, inputs_from=a).status == "already done"
    with pytest.raises(UserError, match=r"conditions expect a name each; got .*pgd"):
        extract(other, images, [PGD], tmp_path / "c.h5", inputs_from=a)


def test_images_that_another_store_lacks(
    network: LoadedModel, images: ImageData, digits_test: ImageData, tmp_path: Path
) -> None:
    a = tmp_path / "a.h5"
    extract(network, images, [], a)
    with pytest.raises(UserError, match="it has only clean; add some"):
        extract(network, images, [], tmp_path / "b.h5", inputs_from=a)
    extract(network, images, [FGSM], a)
    with pytest.raises(UserError, match="of all 80 samples; 24 are not in it"):
        extract(network, draw(digits_test, 80), [], tmp_path / "b.h5", inputs_from=a)
    assert list(tmp_path.iterdir()) == [a]


# Bad input


def move_even(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """A user's attack that moves the even labels only."""
    even = (labels % 2 == 0).float().view(-1, 1, 1, 1)
    return (inputs + 0.1 * even).clamp(0, 1)


def test_unmoved_images_are_counted(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    spec = AttackSpec("mine:move_even", "mine", {}, move_even)
    report = extract(network, images, [spec], tmp_path / "f.h5", batch_size=BATCH)
    odd = int((images.labels % 2 == 1).sum())
    assert any(f"mine left {odd} of 56 images unmoved" in note for note in report.notes)
    assert any("no control was added" in note for note in report.notes)


class Overflowing(nn.Module):
    """A layer that leaves float16's range on bright images only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.square = nn.Conv2d(1, 2, 1)
        self.linear = nn.Linear(2 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.square(torch.where(x > 0.9, x * 1e7, x))
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def bright_later() -> ImageData:
    pixels = torch.randint(0, 200, (30, 1, 8, 8), dtype=torch.uint8)
    pixels[21, 0, 3, 3] = 255
    return as_image_data(pixels, np.arange(30) % 10, name="made", split="test")


def test_a_later_overflow_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    network, out = wrap(Overflowing()), tmp_path / "f.h5"
    with pytest.raises(UserError, match=r"layer square, sample 21 .*float16.*float32"):
        extract(network, bright_later(), [], out, batch_size=10)
    assert list(tmp_path.iterdir()) == []
    report = extract(network, bright_later(), [], out, batch_size=10, dtype="float32")
    assert report.float32 == {"square": "asked for"}
    # In the first batch the same layer is stored in float32 without being asked.
    report = extract(network, bright_later(), [], tmp_path / "g.h5", batch_size=30)
    assert "65504" in report.float32["square"]


def test_nan_activations_name_the_first_layer(images: ImageData, tmp_path: Path) -> None:
    network = untrained(0)
    modules = dict(network.model.encoder.named_modules())
    names = [la.name for la in select_layers(network.model, to_float(images.images[:2])).layers]
    weight = next(p for p in modules[names[2]].parameters() if p.dim() == 4)
    with torch.no_grad():
        weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=f"clean, layer {names[2]}: expected finite .* got nan"):
        extract(network, images, [], tmp_path / "f.h5", batch_size=BATCH)
    assert list(tmp_path.iterdir()) == []


class Hidden(nn.Module):
    """NaN inside that never reaches the logits, in the second batch only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 2, 1)
        self.second = nn.Identity()
        self.third = nn.Identity()
        self.linear = nn.Linear(2 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        bad = self.second(torch.where(x > 0.9, torch.nan, y))
        logits: Tensor = self.linear(torch.nan_to_num(self.third(bad)).flatten(1))
        return logits


def test_hidden_nan_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clean, layer second: expected finite.*nan for sample 21"):
        extract(wrap(Hidden()), bright_later(), [], tmp_path / "f.h5", batch_size=10, layers="all")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_size": 0}, "--batch-size expects at least 1"),
        ({"dtype": "int8"}, "--dtype expects auto or float32; got 'int8'"),
        ({"reduce": "pool"}, "--reduce expects"),
        ({"layers": "layer9.*"}, "layer9"),
        ({"attacks": [PGD, PGD]}, "conditions expect a name each"),
    ],
)
def test_settings_that_cannot_be_meant(
    network: LoadedModel,
    images: ImageData,
    tmp_path: Path,
    changed: dict[str, Any],
    said: str,
) -> None:
    asked: dict[str, Any] = {"attacks": [PGD], **changed}
    with pytest.raises(UserError, match=said):
        extract(network, images, out=tmp_path / "f.h5", **asked)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(
    network: LoadedModel, images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repsim.extract.api, "select_layers", None)  # no work before
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "none" / "f.h5", tmp_path / "file" / "f.h5", tmp_path):
        with pytest.raises(UserError, match="expected"):
            extract(network, images, [], out)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_network_without_a_head_cannot_be_attacked(
    network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    headless = replace(network, meta={**network.meta, "head": [], "scheme": "cl"})
    with pytest.raises(UserError, match="linear head"):
        extract(headless, images, [PGD], tmp_path / "f.h5")


def test_the_report_is_complete(network: LoadedModel, images: ImageData, tmp_path: Path) -> None:
    report = extract(network, images, [PGD], tmp_path / "f.h5")
    assert isinstance(report, ExtractReport)
    assert report.path == tmp_path / "f.h5"
    assert report.seconds > 0
    with h5py.File(report.path) as file:
        assert json.loads(file.attrs["data"])["fingerprint"] == images.fingerprint
        assert json.loads(file["conditions/pgd"].attrs["made"])["batch_size"] == 128
        assert file["conditions/clean/inputs"].dtype == np.uint8
        assert file["conditions/pgd/inputs"].dtype == np.float32
