"""torch_cka's exports and values: against the tool itself, and against the definition."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from repsim.cli import main
from repsim.errors import UserError
from repsim.hooks import capture
from repsim.hooks.record import NETWORK
from repsim.interchange import (
    Compat,
    hooked_rows,
    import_torch_cka,
    read_torch_cka,
    torch_cka_values,
)
from repsim.interchange.labelled import labelled
from repsim.result import load_result, save_result
from repsim.similarity import cka

_DRAWS = torch.Generator().manual_seed(1)
# Colours that differ from image to image: noise alone is the same image to a mean over space.
IMAGES = 2 * torch.randn(48, 3, 1, 1, generator=_DRAWS) + torch.randn(48, 3, 8, 8, generator=_DRAWS)
BATCHES = list(IMAGES.split(16))
Saved = dict[str, Any]


class Block(nn.Module):
    """A residual block as torchvision has it: one ReLU, in place, and an added shortcut."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Identity())
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.bn(self.conv(x))))
        if self.inplace:
            out += self.shortcut(x)
        else:
            out = out + self.shortcut(x)
        return self.relu(out)


class Small(nn.Module):
    """named_modules is not the order in which they run: the head was registered first."""

    def __init__(self, seed: int = 0, inplace: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc = nn.Linear(6, 5)
        self.stem = nn.Conv2d(3, 6, 3)
        self.blocks = nn.Sequential(Block(inplace), Block(inplace))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


ORDER = [
    "stem",
    *(
        f"blocks.{i}{name}"
        for i in range(2)
        for name in (".conv", ".bn", ".relu@2", ".conv2", ".shortcut.0", ".shortcut.1",
                     ".shortcut", "")
    ),
    "blocks",
    "fc",
    NETWORK,
]  # fmt: skip


def song(K: np.ndarray, L: np.ndarray) -> float:
    """Debiased HSIC by U-centring in float64 (Székely and Rizzo 2014)."""
    n = len(K)

    def centred(A: np.ndarray) -> np.ndarray:
        A = A - np.diag(np.diag(A))
        r = A.sum(0)
        A = A - (r[:, None] + r[None, :]) / (n - 2) + r.sum() / ((n - 1) * (n - 2))
        return A - np.diag(np.diag(A))

    return float((centred(K) * centred(L)).sum() / (n * (n - 3)))


def reference(
    model: nn.Module, model2: nn.Module, batches: list[Tensor], batches2: list[Tensor], late: bool
) -> np.ndarray:
    """Hooks on every module in a dictionary; read at once, or (late) after both forwards."""
    sides: list[dict[str, Tensor]] = [{}, {}]
    handles = []

    def keep(side: int, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        sides[side][name] = output if late else output.clone()

    for side, network in enumerate((model, model2)):
        network.eval()
        for name, module in network.named_modules():
            handles.append(module.register_forward_hook(partial(keep, side, name)))
    sums: list[Any] = [0.0, 0.0, 0.0]
    for x, y in zip(batches, batches2, strict=True):
        with torch.no_grad():
            model(x)
            model2(y)
        grams = [
            [(X := one.flatten(1).double().numpy()) @ X.T for one in side.values()]
            for side in sides
        ]
        for k, (left, right) in enumerate(((0, 1), (0, 0), (1, 1))):
            values = [[song(K, L) for L in grams[right]] for K in grams[left]]
            sums[k] = sums[k] + np.array(values)
    for handle in handles:
        handle.remove()
    return np.asarray(sums[0] / np.sqrt(np.diag(sums[1])[:, None] * np.diag(sums[2])[None, :]))


@pytest.fixture(scope="module")
def both() -> Compat:
    pair = (("a", "clean"), ("b", "clean"))
    return torch_cka_values(Small(0), Small(1), BATCHES, pair=pair)


def run_theirs(
    model: nn.Module, model2: nn.Module, loader: Any, loader2: Any = None, **options: Any
) -> Saved:
    with warnings.catch_warnings():
        # Its import of matplotlib.pyplot and its missing second loader warn.
        warnings.simplefilter("ignore")
        tool = pytest.importorskip("torch_cka")
        made = tool.CKA(model, model2, model1_name="a", model2_name="b", **options)
        made.compare(loader, loader2)
    for module in [*model.modules(), *model2.modules()]:
        module._forward_hooks.clear()  # the tool never takes its hooks off
    return dict(made.export())


def loader_of(images: Tensor, size: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=size, **options)


def test_values_are_the_tools() -> None:
    a, b = Small(0), Small(1)
    theirs = run_theirs(a, b, loader_of(IMAGES, 16))["CKA"]
    ours = torch_cka_values(a, b, BATCHES).result["similarity"].values
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-6)


def test_values_are_the_tools_on_a_resnet18() -> None:
    torch.manual_seed(0)
    a, b = (torchvision.models.resnet18(num_classes=10) for _ in range(2))
    # Not all 68: the tool makes each HSIC anew for every pair.
    names = ["conv1", "bn1", "relu", "layer1.0.bn2", "layer1.0.relu", "layer1.0", "layer2",
             "layer3.0.downsample.1", "layer4.1.bn2", "layer4", "avgpool", "fc"]  # fmt: skip
    images = torch.rand(64, 3, 32, 32)
    saved = run_theirs(a, b, loader_of(images, 32), model1_layers=names, model2_layers=names)
    ours = torch_cka_values(a, b, list(images.split(32)), layers=names, layers2=names)
    np.testing.assert_allclose(
        ours.result["similarity"].values, saved["CKA"].numpy(), rtol=0, atol=1e-5
    )
    assert list(ours.result["x_layer"].values)[:3] == ["conv1", "bn1", "relu"]
    changed = [one["layer"] for one in ours.summary()["changed_x"]]
    assert set(changed) == {"bn1", "layer1.0.bn2", "layer4.1.bn2"}


def test_values_are_the_tools_with_two_data_sets_and_a_smaller_last_batch() -> None:
    a, b, other = Small(0), Small(1), IMAGES.flip(0)
    theirs = run_theirs(a, b, loader_of(IMAGES, 20), loader_of(other, 20))["CKA"]
    ours = torch_cka_values(a, b, list(IMAGES.split(20)), list(other.split(20)))
    np.testing.assert_allclose(ours.result["similarity"].values, theirs.numpy(), atol=1e-6)
    assert any("batches of 20 and of 8 images count alike" in note for note in ours.notes)


def test_one_object_as_both_networks_sees_the_second_data_set_twice() -> None:
    a, other = Small(0), IMAGES.flip(0)
    theirs = run_theirs(a, a, loader_of(IMAGES, 16), loader_of(other, 16))["CKA"]
    pair = (("a", "clean"), ("a", "other"))
    ours = torch_cka_values(a, a, BATCHES, list(other.split(16)), pair=pair)
    np.testing.assert_allclose(ours.result["similarity"].values, theirs.numpy(), atol=1e-6)
    assert any("one object is both" in note for note in ours.notes)
    # The correct one compares the two data sets.
    twin = Small(0)
    right = reference(a, twin, BATCHES, list(other.split(16)), late=False)
    np.testing.assert_allclose(ours.correct["similarity"].values, right, atol=1e-5)


def test_a_loader_that_shuffles_compares_other_images() -> None:
    a, b = Small(0), Small(1)
    torch.manual_seed(3)
    theirs = run_theirs(a, b, loader_of(IMAGES, 16, shuffle=True))["CKA"]
    torch.manual_seed(3)
    ours = torch_cka_values(a, b, loader_of(IMAGES, 16, shuffle=True))  # type: ignore[arg-type]
    np.testing.assert_allclose(ours.result["similarity"].values, theirs.numpy(), atol=1e-6)
    assert any("shuffles: in 3 of 3 batches" in note for note in ours.notes)


def test_values_follow_from_the_definition(both: Compat) -> None:
    a, b = Small(0), Small(1)
    late = reference(a, b, BATCHES, BATCHES, late=True)
    right = reference(a, b, BATCHES, BATCHES, late=False)
    assert list(both.result["x_layer"].values) == ORDER
    # The tool's float32 terms round by some 1e-5 here.
    np.testing.assert_allclose(both.result["similarity"].values, late, rtol=0, atol=1e-4)
    np.testing.assert_allclose(both.correct["similarity"].values, right, rtol=0, atol=1e-5)
    np.testing.assert_allclose(both.in_place, late - right, rtol=0, atol=1e-5)


def test_the_correct_values_are_repsims(both: Compat) -> None:
    a, b = Small(0), Small(1)
    names = ["stem", "blocks.0.bn", "blocks.1.conv2", "blocks.1.relu@2"]
    kept = []
    for network in (a, b):
        with capture(network, names) as captured, torch.no_grad():
            network(IMAGES)
        kept.append(dict(captured))
    for x in names:
        for y in names:
            expected = cka(kept[0][x], kept[1][y], estimator="minibatch", batch_size=16)
            i, j = ORDER.index(x), ORDER.index(y)
            assert float(both.correct["similarity"][i, j]) == pytest.approx(expected, abs=1e-5)


def test_the_difference_is_laid_at_the_right_door(both: Compat) -> None:
    summary = both.summary()
    changed = {f"blocks.{i}.{name}" for i in range(2) for name in ("bn", "conv2")}
    for side in "xy":
        assert {one["layer"] for one in summary[f"changed_{side}"]} == changed
        assert all(one["mean"] > 1e-4 for one in summary[f"changed_{side}"])
    assert summary["in_place"]["largest"] > 0.01
    assert summary["rounding"]["largest"] < 1e-4
    assert summary["difference"]["largest"] == pytest.approx(
        summary["in_place"]["largest"], abs=1e-4
    )
    cell = summary["largest_cell"]
    assert {cell["x_layer"], cell["y_layer"]} & changed
    size = np.abs(both.in_place)
    touched = np.array([name in changed for name in ORDER])
    assert size[~touched][:, ~touched].max() == 0


def test_without_changes_in_place_only_rounding_is_left() -> None:
    found = torch_cka_values(Small(0, inplace=False), Small(1, inplace=False), BATCHES)
    summary = found.summary()
    assert summary["changed_x"] == summary["changed_y"] == []
    assert summary["in_place"] == {"mean": 0, "largest": 0}
    assert 0 < summary["difference"]["largest"] < 1e-4


class Far(nn.Module):
    """Activations far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)
        nn.init.constant_(self.fc.bias, 3e3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((1, 3)))


def test_rounding_far_from_zero_is_shown_apart() -> None:
    torch.manual_seed(0)
    a, b = Far(), Far()
    found = torch_cka_values(a, b, BATCHES)
    right = reference(a, b, BATCHES, BATCHES, late=False)
    np.testing.assert_allclose(found.correct["similarity"].values, right, atol=1e-3)
    value = found.result["similarity"].values
    assert np.isnan(value).any() or np.abs(value - right).max() > 0.05
    assert found.summary()["in_place"]["largest"] == 0


def test_models_are_left_as_they_were(both: Compat) -> None:
    a = Small(0).train()
    torch_cka_values(a, Small(1), BATCHES)
    assert a.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in a.modules())
    assert all(p.requires_grad for p in a.parameters())


class Silent(Small):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(2, 2)


class Pair(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


def test_what_the_tool_fails_on_is_said() -> None:
    found = torch_cka_values(Silent(), Small(1), BATCHES)
    assert (
        "stops with an assertion here: 1 hooked modules of the rows never run (e.g. aux)"
        in (found.notes[0])
    )
    with pytest.raises(UserError, match=r"cannot take the output of \(network\) \(a tuple of 2"):
        torch_cka_values(Pair(), Small(1), BATCHES)
    with pytest.raises(UserError, match=r"at least 4 images.*got 3 and 3"):
        torch_cka_values(Small(), Small(1), list(IMAGES.split(15)))
    with pytest.raises(UserError, match=r"one size.*got 16 and 20"):
        torch_cka_values(Small(), Small(1), BATCHES, list(IMAGES.split(20)))
    with pytest.raises(UserError, match="at least one batch"):
        torch_cka_values(Small(), Small(1), [])
    with pytest.raises(UserError, match="no module 'stemm'; near: stem"):
        torch_cka_values(Small(), Small(1), BATCHES, layers=["stemm"])


# --- exports ---------------------------------------------------------------------------------


def export_of(found: Compat, model: nn.Module, model2: nn.Module) -> Saved:
    return {
        "model1_name": "a", "model2_name": "b",
        "CKA": torch.from_numpy(found.result["similarity"].values).float(),
        "model1_layers": [name for name, _ in model.named_modules()],
        "model2_layers": [name for name, _ in model2.named_modules()],
        "dataset1_name": "digits", "dataset2_name": "digits",
    }  # fmt: skip


@pytest.fixture
def saved(both: Compat) -> Saved:
    return export_of(both, Small(0), Small(1))


@pytest.fixture
def file(saved: Saved, tmp_path: Path) -> Path:
    path = tmp_path / "export.pt"
    torch.save(saved, path)
    return path


def test_an_export_of_the_tool_is_read(tmp_path: Path) -> None:
    a, b = Small(0), Small(1)
    content = run_theirs(a, b, loader_of(IMAGES, 16))
    torch.save(content, tmp_path / "theirs.pt")
    found = read_torch_cka(tmp_path / "theirs.pt")
    np.testing.assert_array_equal(found.matrix, content["CKA"].numpy())
    assert found.models == ("a", "b")
    assert found.layers[0][:4] == ["", "fc", "stem", "blocks"]
    assert "TensorDataset" in found.datasets[0]


def test_names_are_put_right_and_the_matrix_stays(file: Path, saved: Saved) -> None:
    result = import_torch_cka(file, model=Small(0), images=IMAGES, samples=48)
    assert list(result["x_layer"].values) == list(result["y_layer"].values) == ORDER
    assert saved["model1_layers"][:4] == ["", "fc", "stem", "blocks"]  # what it said they were
    np.testing.assert_array_equal(result["similarity"].values, saved["CKA"].numpy())
    assert set(result["x_model"].values) == {"a"}
    assert set(result["y_model"].values) == {"b"}
    assert result.attrs["measure"] == "cka"
    assert result.attrs["estimator"] == "minibatch"
    assert result.attrs["samples"] == 48
    origin = json.loads(result.attrs["provenance"])["imported"]
    assert origin["tool"] == "torch_cka"
    assert origin["file"] == "export.pt"
    assert len(origin["sha256"]) == 64
    assert set(origin["x_changed_in_place"]) == {
        f"blocks.{i}.{name}" for i in range(2) for name in ("bn", "conv2")
    }
    notes = json.loads(result.attrs["notes"])
    assert any("2 rows hold the last of several calls" in note for note in notes)
    assert any("4 rows show tensors that were changed in place" in note for note in notes)


def test_rows_of_equal_content_are_marked(file: Path) -> None:
    result = import_torch_cka(file, model=Small(0), images=IMAGES)
    found = {
        str(name): str(first)
        for name, first in zip(
            result["x_layer"].values, result["x_duplicate_of"].values, strict=True
        )
        if first
    }
    expected = {"blocks": "blocks.1.relu@2", NETWORK: "fc"}
    for i in range(2):
        block = f"blocks.{i}"
        expected |= {
            block: f"{block}.relu@2",  # a container and its last child
            f"{block}.conv2": f"{block}.relu@2",  # `+=` and the ReLU wrote into its output
            f"{block}.shortcut": f"{block}.shortcut.0",
            f"{block}.shortcut.1": f"{block}.shortcut.0",  # identity
        }
    assert found == expected


def test_duplicates_are_equal_to_the_rounding_of_float32() -> None:
    row = np.linspace(0.1, 0.9, 6)
    matrix = np.stack([row, row + 1e-7, row + 1e-5, row[::-1]])
    sides = (("a", "clean"), ("b", "clean"))
    result = labelled(
        matrix, sides, (list("abcd"), list("uvwxyz")), samples=4, attributes={}, notes=[],
        provenance={},
    )  # fmt: skip
    assert list(result["x_duplicate_of"].values) == ["", "a", "", ""]
    assert not any(result["y_duplicate_of"].values)


def test_duplicates_need_more_than_one_column_to_be_told() -> None:
    sides = (("a", "clean"), ("b", "clean"))
    result = labelled(
        np.array([[0.5], [0.5]]), sides, (["one", "two"], ["z"]), samples=4, attributes={},
        notes=[], provenance={},
    )  # fmt: skip
    assert list(result["x_duplicate_of"].values) == ["", ""]


def test_without_the_model_rows_are_numbered(file: Path) -> None:
    result = import_torch_cka(file)
    assert list(result["x_layer"].values)[:2] == ["module 1", "module 2"]
    assert any("rows are numbered" in note for note in json.loads(result.attrs["notes"]))
    origin = json.loads(result.attrs["provenance"])["imported"]
    assert origin["x_names"][:2] == ["", "fc"]


def test_a_part_of_the_modules_and_a_wrapper(saved: Saved, tmp_path: Path) -> None:
    some = ["fc", "blocks.0.bn", "stem"]
    found = torch_cka_values(Small(0), Small(1), BATCHES, layers=some)
    content = {**saved, "CKA": torch.from_numpy(found.result["similarity"].values),
               "model1_layers": ["fc", "stem", "blocks.0.bn"]}  # fmt: skip
    torch.save(content, tmp_path / "some.pt")
    result = import_torch_cka(tmp_path / "some.pt", model=Small(0), images=IMAGES, model2=Small(1))
    assert list(result["x_layer"].values) == ["stem", "blocks.0.bn", "fc"]

    parallel = nn.DataParallel(Small(0))
    names = [name for name, _ in parallel.named_modules()]
    count = len(names)
    matrix = torch.rand(count, len(saved["model2_layers"]))
    torch.save({**saved, "CKA": matrix, "model1_layers": names}, tmp_path / "wrapped.pt")
    result = import_torch_cka(
        tmp_path / "wrapped.pt", model=Small(0), images=IMAGES, model2=Small(1)
    )
    assert list(result["x_layer"].values) == [*ORDER, f"{NETWORK}@2"]


def test_networks_of_one_name(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "same.pt"
    torch.save({**saved, "model2_name": "a"}, path)
    result = import_torch_cka(path)
    assert {*result["x_model"].values, *result["y_model"].values} == {"a (x)", "a (y)"}
    with pytest.raises(UserError, match="both sides are called a:clean"):
        import_torch_cka(path, pair=(("a", "clean"), ("a", "clean")))
    itself = torch_cka_values(Small(0), Small(0), BATCHES).result["similarity"].values
    torch.save({**saved, "model2_name": "a", "CKA": torch.from_numpy(itself)}, path)
    result = import_torch_cka(path, model=Small(0), images=IMAGES)
    assert set(result["x_model"].values) == set(result["y_model"].values) == {"a"}
    assert "long_range" in json.loads(result.attrs["summary"])


def test_modules_that_never_ran_have_no_row(saved: Saved, tmp_path: Path) -> None:
    names = [*saved["model1_layers"], "aux"]
    matrix = torch.cat([saved["CKA"], torch.full((1, saved["CKA"].shape[1]), float("nan"))])
    torch.save({**saved, "CKA": matrix, "model1_layers": names}, tmp_path / "silent.pt")
    result = import_torch_cka(
        tmp_path / "silent.pt", model=Silent(), images=IMAGES, model2=Small(1)
    )
    assert list(result["x_layer"].values) == ORDER
    assert any("1 rows at the end" in note for note in json.loads(result.attrs["notes"]))


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [1, 2], "a dictionary; got list"),
        (lambda s: {"cka": s["CKA"]}, "it has no CKA, model1_layers, model2_layers but cka"),
        (lambda s: {**s, "CKA": s["CKA"][0]}, "a matrix of numbers"),
        (lambda s: {**s, "CKA": "no"}, "a matrix of numbers"),
        (lambda s: {**s, "CKA": [[1.0, 2.0], [1.0]]}, "a matrix of numbers"),
        (lambda s: {**s, "model1_layers": s["model1_layers"][1:]}, "each of the 20 rows"),
        (lambda s: {**s, "model2_layers": ["x"] * 20}, "20 names, 1 of them different"),
        (lambda s: {**s, "model1_layers": 3}, "a list of names"),
        (lambda s: {**s, "CKA": s["CKA"].numpy()}, "refused.*numpy"),
        (lambda s: {**s, "CKA": Code()}, "refused.*exec"),
    ],
)
def test_other_files_are_refused(
    saved: Saved, tmp_path: Path, change: Callable[[Saved], Any], message: str
) -> None:
    path = tmp_path / "bad.pt"
    torch.save(change(saved), path)
    with pytest.raises(UserError, match=message) as error:
        read_torch_cka(path)
    assert "\n" not in str(error.value)


def test_files_of_other_formats_are_refused(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(pickle.dumps({"CKA": Code()}))
    with pytest.raises(UserError, match="refused, because it is a pickle"):
        read_torch_cka(path)
    path.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="cut short"):
        read_torch_cka(path)
    path.write_text("CKA")
    with pytest.raises(UserError, match="something else"):
        read_torch_cka(path)
    with pytest.raises(UserError, match="there is no such file"):
        read_torch_cka(tmp_path / "none.pt")
    with pytest.raises(UserError, match="no module 'blocks' and 18 more"):
        import_torch_cka(file, model=nn.Sequential(nn.Conv2d(3, 6, 3)), images=IMAGES)


def test_rows_need_an_image() -> None:
    with pytest.raises(UserError, match="expects an image"):
        hooked_rows(Small(), IMAGES[:0])


def test_an_import_opens_without_repsim(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cka.h5"
    save_result(import_torch_cka(file, model=Small(0), images=IMAGES), path)
    assert list(load_result(path)["x_layer"].values) == ORDER
    code = (
        "import sys\n"
        "class Never:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.partition('.')[0] in ('repsim', 'torch'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Never())\n"
        "import xarray as xr\n"
        f"d = xr.open_dataset({str(path)!r}, engine='h5netcdf')\n"
        "table = d['similarity'].to_dataframe().reset_index()\n"
        "assert len(table) == 400, table\n"
        "row = table[(table.x_layer == 'stem') & (table.y_layer == 'fc')]\n"
        "assert row.similarity.notna().all() and len(row) == 1\n"
        "wide = table.pivot(index='x_layer', columns='y_layer', values='similarity')\n"
        "assert wide.shape == (20, 20)\n"
        "assert d.attrs['measure'] == 'cka'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_commands(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    st, at = str(checkpoints["st"]), str(checkpoints["at"])
    small = ["--samples", "32", "--batch-size", "16", "--quiet"]
    layers = ["--layers", "layer*.0.*", "--layers", "fc", "--layers", "linear"]
    assert run("compat", "--model", st, "--model2", at, *small, "--layers", "layer*") == 0
    assert run("plot", "torch_cka.h5", "torch_cka-correct.h5", "--kind", "difference",
               "--out", "d.png") == 0  # fmt: skip
    result = load_result(tmp_path / "torch_cka.h5")
    assert set(result["x_model"].values) == {"st"}
    assert all(str(name).startswith("layer") for name in result["x_layer"].values)
    names = [str(name) for name in result["x_layer"].values]

    torch.save(
        {"CKA": torch.from_numpy(result["similarity"].values), "model1_name": "st",
         "model2_name": "at", "model1_layers": sorted(names), "model2_layers": sorted(names)},
        "export.pt",
    )  # fmt: skip
    arguments = ["import", "export.pt", "--model", st, "--model2", at, "--samples", "32"]
    assert run(*arguments, "--out", "in.h5", "--json", "in.json") == 0
    again = load_result(tmp_path / "in.h5")
    np.testing.assert_array_equal(again["similarity"].values, result["similarity"].values)
    assert list(again["x_layer"].values) == names
    assert json.loads((tmp_path / "in.json").read_text())["duplicates"]["x"]
    assert (tmp_path / "in.png").is_file()
    capsys.readouterr()
    assert run("plot", "in.h5", "torch_cka.h5", "--kind", "difference", "--out", "z.png") == 0

    again_ = ["--against", "export.pt", "--overwrite", "--json", "c.json"]
    assert run("compat", "--model", st, "--model2", at, *small, "--layers", "layer*", *again_) == 0
    against = json.loads((tmp_path / "c.json").read_text())["against"]
    assert against["largest"] < 1e-6

    attacked = ["--attack", "pgd", "--steps", "1", "--out", "attacked.h5"]
    assert run("compat", "--model", st, *small, *attacked, "--layers", "layer*") == 0
    found = load_result(tmp_path / "attacked.h5")
    assert set(found["y_condition"].values) == {"pgd"}
    origin = json.loads(found.attrs["provenance"])
    assert origin["attack"]["params"]["steps"] == 1
    assert origin["data"]["name"] == "digits"
    assert len(origin["models"][0]["sha256"]) == 64
    capsys.readouterr()
    for bad, message in (
        (["compat", "--model", st, *small], "is there; give another name or --overwrite"),
        (["compat", "--model", st, *small, *layers, "--out", "x.h5"], "matches no module"),
        (["compat", "--model", st, "--eps", "0.1", "--out", "x.h5"], "--eps belongs to --attack"),
        (["compat", "--model", st, *small, "--against", "export.pt", "--out", "x.h5"],
         "expects a matrix of"),
        (["import", "export.pt", "--out", "in.h5"], "is there; give another"),
        (["import", "export.pt", "--pair", "a", "--out", "x.h5"], "expects two sides"),
        (["import", "in.h5", "--out", "x.h5"], "something else"),
    ):  # fmt: skip
        assert run(*bad) == 2, bad
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1]
    assert not (tmp_path / "x.h5").exists()


def test_results_are_ordinary(both: Compat) -> None:
    assert isinstance(both.result, xr.Dataset)
    assert both.result.attrs["samples"] == 48
    assert "alignment_mean" in json.loads(both.result.attrs["summary"])
