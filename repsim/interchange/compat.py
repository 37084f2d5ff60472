"""torch_cka's values, computed as that tool computes them, beside the correct ones.

What torch_cka 0.21 (github.com/AntixK/PyTorch-Model-Compare) does, and what of it matters:

- HSIC of each batch in float32 from Gram matrices K = X·Xᵀ that are *not* centred, the diagonal
  set to 0: [tr(K·L) + 1ᵀK1·1ᵀL1/((n-1)(n-2)) - 2/(n-2)·1ᵀK·L1] / (n(n-3)) (Song et al. 2012).
  Right in exact numbers; where activations lie far from zero, large terms cancel.
- The mean over batches of the three HSICs, a smaller last batch counted like any other, then
  CKA = HSIC(K,L) / (√HSIC(K,K)·√HSIC(L,L)) (Nguyen et al. 2021).
- X is the tensor that the hook was given, read after the forward has ended: after every in-place
  operation that followed. See `repsim.interchange.hooked` for its rows.
- The same object given twice has one set of hooks: both sides then see the second data set.

The correct values here are of the same calls of the same modules on the same batches, the outputs
taken when the module returns, centred before they are multiplied, summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.hooks.modules import observed, unwrap
from repsim.interchange.hooked import HookedRow, hooked_rows
from repsim.interchange.labelled import Side, labelled
from repsim.progress import Progress, Silent

if TYPE_CHECKING:
    import xarray as xr

TOOL = "torch_cka 0.21"
LEAST = 4  # images of a batch: the estimator divides by n(n-3)


@dataclass(frozen=True)
class Compat:
    """What torch_cka gives and what it should.

    Attributes:
        result: torch_cka's values; nan where they are nan, at which torch_cka stops.
        correct: the correct ones, under the same names.
        in_place: (x, y) the part of their difference that is there because tensors were changed
            in place after the hook; the rest is rounding.
        rows: of both sides; `changed_by` says which were changed in place.
        notes: what a user of torch_cka would not be told.
    """

    result: xr.Dataset
    correct: xr.Dataset
    in_place: NDArray[np.float64]
    rows: tuple[list[HookedRow], list[HookedRow]]
    notes: list[str]

    def summary(self) -> dict[str, Any]:
        """The difference, torch_cka minus correct, as plain values.

        Returns:
            `difference`, and of it `in_place` and `rounding`, each with `mean` (of the absolute
            values) and `largest`; `largest_cell` (layers, both values); `changed_x`, `changed_y`:
            the rows and columns that were changed in place, the most affected first, with the mean
            absolute difference that this makes in their cells.
        """
        theirs, right = self.result["similarity"].values, self.correct["similarity"].values
        difference = theirs - right
        parts = {
            "difference": difference,
            "in_place": self.in_place,
            "rounding": difference - self.in_place,
        }
        summary: dict[str, Any] = {"samples": int(self.result.attrs["samples"])}
        for name, values in parts.items():
            size = np.abs(values[np.isfinite(values)])
            summary[name] = (
                {"mean": float(size.mean()), "largest": float(size.max())} if size.size else None
            )
        if summary["difference"]:
            i, j = np.unravel_index(np.nanargmax(np.abs(difference)), difference.shape)
            summary["largest_cell"] = {
                "x_layer": self.rows[0][i].layer, "y_layer": self.rows[1][j].layer,
                "torch_cka": float(theirs[i, j]), "correct": float(right[i, j]),
            }  # fmt: skip
        for side, rows, values in (
            ("x", self.rows[0], self.in_place), ("y", self.rows[1], self.in_place.T),
        ):  # fmt: skip
            found = [
                {"layer": row.layer, "changed_by": row.changed_by,
                 "mean": float(np.abs(cells[np.isfinite(cells)]).mean())}
                for row, cells in zip(rows, values, strict=True)
                if row.changed_by and np.isfinite(cells).any()
            ]  # fmt: skip
            summary[f"changed_{side}"] = sorted(found, key=lambda one: -float(str(one["mean"])))
        return {**summary, "notes": self.notes}


def torch_cka_values(
    model: nn.Module,
    model2: nn.Module,
    batches: Sequence[Any],
    batches2: Sequence[Any] | None = None,
    *,
    layers: Sequence[str] | None = None,
    layers2: Sequence[str] | None = None,
    pair: tuple[Side, Side] = (("model1", "clean"), ("model2", "clean")),
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Compat:
    """What `torch_cka.CKA(model, model2, layers, layers2).compare(batches, batches2)` computes.

    Its values to the last bits where the same processor makes the same products, and else to
    float32 rounding. The models run in eval mode on the device they are on; nothing stays hooked.

    Args:
        model: network of the rows; a wrapper that normalises is run but not hooked.
        model2: that of the columns; may be the same object, which torch_cka gets wrong (above).
        batches: of images (n, channels, height, width), or of tuples whose first entry they are:
            a list or a DataLoader.
        batches2: what `model2` sees; `batches` by default, gone through a second time: a loader
            that shuffles then gives the two networks different images, as in torch_cka.
        layers: modules that get a hook; all by default, the network itself included.
        layers2: those of `model2`.
        pair: (model, condition) of both sides in the result.
        provenance: plain values that both results shall say of the networks and the images.
        progress: told of the batches.

    Raises:
        UserError: no batches, fewer than 4 images in one, batches of two sizes, a module whose
            output torch_cka cannot take, no such module.
    """
    second = batches if batches2 is None else batches2
    count = len(batches)
    if count == 0 or len(second) == 0:
        raise UserError("torch_cka expects at least one batch of images for each network; got none")
    rows = _rows(model, batches, layers), _rows(model2, second, layers2)
    modules = [row.module for row in rows[0]], [row.module for row in rows[1]]
    notes = [*_never(model, modules[0], layers, "rows"),
             *_never(model2, modules[1], layers2, "columns")]  # fmt: skip
    twice = unwrap(model) is unwrap(model2)
    if twice and second is not batches:
        notes.append(
            "one object is both networks: torch_cka has one set of hooks for it and compares the "
            "second data set with itself; give it two copies"
        )
    shape = len(modules[0]), len(modules[1])
    theirs, right, late = _Theirs(*shape, count), _Right(*shape), _Right(*shape)
    sizes: list[int] = []
    unlike = 0
    with ExitStack() as stack:
        first = stack.enter_context(_hooked(model, [*modules[0], *(modules[1] if twice else ())]))
        other = first if twice else stack.enter_context(_hooked(model2, modules[1]))
        task = stack.enter_context((progress or Silent()).task("torch_cka", count, unit="batch"))
        for one, two in zip(batches, second, strict=False):
            x, y = _images(one), _images(two)
            if len(x) != len(y) or len(x) < LEAST:
                raise UserError(
                    f"torch_cka expects batches of one size, at least {LEAST} images, for both "
                    f"networks; got {len(x)} and {len(y)}; choose another --batch-size or --samples"
                )
            unlike += second is batches and not torch.equal(x, y)
            sizes.append(len(x))
            model(x.to(_device(model)))
            grams = dict(first.grams)
            model2(y.to(_device(model2)))
            # Only now: where one object is both, its hooks have been called again.
            theirs.add([first.features[name] for name in modules[0]],
                       [other.features[name] for name in modules[1]])  # fmt: skip
            right.add([grams[name] for name in modules[0]],
                      [other.grams[name] for name in modules[1]])  # fmt: skip
            late.add(_late(rows[0], first.features, grams),
                     _late(rows[1], other.features, other.grams))  # fmt: skip
            task.advance(1)
    value, correct = theirs.cka(), right.cka()
    notes += _warnings(value, sizes, unlike)
    changed = {
        f"{axis}_changed_in_place": {row.layer: row.changed_by for row in side if row.changed_by}
        for axis, side in zip("xy", rows, strict=True)
    }

    def result(values: NDArray[np.float64], known: dict[str, Any]) -> xr.Dataset:
        names = [row.layer for row in rows[0]], [row.layer for row in rows[1]]
        attributes = {"estimator": "minibatch", "kernel": "linear", "batches": len(sizes),
                      "batch_size": max(sizes)}  # fmt: skip
        return labelled(
            values, pair, names, samples=sum(sizes), attributes=attributes, notes=notes,
            provenance={**known, **(provenance or {})},
        )  # fmt: skip

    return Compat(
        result=result(value, {"compat": TOOL, **changed}),
        correct=result(correct, {"correct_for": TOOL}),
        in_place=late.cka() - correct,
        rows=rows,
        notes=notes,
    )


def _rows(model: nn.Module, batches: Sequence[Any], names: Sequence[str] | None) -> list[HookedRow]:
    """The rows, refused where torch_cka would fail."""
    # Looking at the first batch must not change in which order a loader shuffles later.
    generator = getattr(batches, "generator", None)
    state = None if generator is None else generator.get_state()
    with torch.random.fork_rng(devices=[]):
        images = _images(next(iter(batches)))
    if generator is not None:
        generator.set_state(state)
    rows = hooked_rows(model, images.to(_device(model)), names)
    for row in rows:
        if row.refused:
            raise UserError(
                f"torch_cka cannot take the output of {row.layer} ({row.refused}) and stops; name "
                "the modules to hook without it (--layers)"
            )
    return rows


def _never(model: nn.Module, ran: list[str], names: Sequence[str] | None, word: str) -> list[str]:
    hooked = {name for name, _ in unwrap(model).named_modules()} if names is None else set(names)
    silent = sorted(hooked - set(ran))
    return [
        f"torch_cka stops with an assertion here: {len(silent)} hooked modules of the {word} never "
        f"run (e.g. {silent[0]}) and it divides 0 by 0; they are left out"
    ] if silent else []  # fmt: skip


def _warnings(value: NDArray[np.float64], sizes: list[int], unlike: int) -> list[str]:
    notes = []
    if unlike:
        notes.append(
            f"the loader shuffles: in {unlike} of {len(sizes)} batches the two networks saw "
            "different images, and the values compare those"
        )
    if len(set(sizes)) > 1:
        notes.append(
            f"batches of {max(sizes)} and of {min(sizes)} images count alike in torch_cka's mean; "
            "repsim cka leaves a smaller last batch out"
        )
    if not np.isfinite(value).all():
        notes.append(
            f"{int((~np.isfinite(value)).sum())} of {value.size} cells are nan: torch_cka stops "
            "with an assertion there"
        )
    return notes


@dataclass
class _Taken:
    """What hooks gave in the last forward: the tensors themselves, and U-centred Gram matrices."""

    features: dict[str, Tensor]
    grams: dict[str, Tensor]


@contextmanager
def _hooked(model: nn.Module, names: Sequence[str]) -> Iterator[_Taken]:
    """Hooks on these modules of the bare encoder, as torch_cka has them, for the block."""
    taken = _Taken({}, {})

    def take(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        taken.features[name] = output
        taken.grams[name] = _u_centred(output)

    with ExitStack() as stack:
        stack.enter_context(observed(model))
        stack.enter_context(torch.no_grad())
        for name, module in unwrap(model).named_modules():
            if name in names:
                stack.callback(module.register_forward_hook(partial(take, name)).remove)
        yield taken


def _images(batch: Any) -> Tensor:
    images = batch if isinstance(batch, Tensor) else batch[0]
    assert isinstance(images, Tensor)
    return images


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _u_centred(output: Tensor) -> Tensor:
    """The U-centred Gram matrix of a batch as a vector (n²,) float64 (Székely and Rizzo 2014)."""
    X = output.detach().flatten(1)
    X = (X - X.mean(0, dtype=torch.float64)).float()
    K = (X @ X.T).double()
    n = len(K)
    K.fill_diagonal_(0)
    rows = K.sum(1) / (n - 2)
    K -= rows[:, None] + rows[None, :] - K.sum() / ((n - 1) * (n - 2))
    return K.fill_diagonal_(0).flatten().cpu()


def _late(
    rows: Sequence[HookedRow], features: dict[str, Tensor], grams: dict[str, Tensor]
) -> list[Tensor]:
    """U-centred Gram matrices of what the tensors are after the forward."""
    return [
        _u_centred(features[row.module]) if row.changed_by else grams[row.module] for row in rows
    ]


class _Right:
    """Sums over batches of the debiased HSIC of all pairs and of each with itself."""

    def __init__(self, rows: int, columns: int) -> None:
        self.across = torch.zeros(rows, columns, dtype=torch.float64)
        self.rows = torch.zeros(rows, dtype=torch.float64)
        self.columns = torch.zeros(columns, dtype=torch.float64)

    def add(self, x: list[Tensor], y: list[Tensor]) -> None:
        """A batch; its U-centred Gram matrices."""
        A, B = torch.stack(x), torch.stack(y)
        n = round(A.shape[1] ** 0.5)
        scale = 1 / (n * (n - 3))
        self.across += A @ B.T * scale
        self.rows += A.square().sum(1) * scale
        self.columns += B.square().sum(1) * scale

    def cka(self) -> NDArray[np.float64]:
        """HSIC(K, L)/√(HSIC(K, K)·HSIC(L, L)) of the sums, (rows, columns)."""
        norm = self.rows[:, None].sqrt() * self.columns[None, :].sqrt()
        return np.asarray((self.across / norm).numpy())


class _Theirs:
    """The same sums as torch_cka makes them: float32 products and terms, in its order.

    Only HSIC(K, K) and HSIC(L, L), which it computes anew for every pair, are computed once.
    """

    def __init__(self, rows: int, columns: int, batches: int) -> None:
        self.batches = batches
        self.across = torch.zeros(rows, columns)
        self.rows, self.columns = torch.zeros(rows), torch.zeros(columns)

    def add(self, x: list[Tensor], y: list[Tensor]) -> None:
        """A batch; the tensors as they are after both forwards."""
        K, L = [_Gram(one) for one in x], [_Gram(one) for one in y]
        for i, k in enumerate(K):
            self.rows[i] += k.hsic(k) / self.batches
            for j, l in enumerate(L):  # noqa: E741 - the field's letter
                self.across[i, j] += k.hsic(l) / self.batches
        for j, l in enumerate(L):  # noqa: E741
            self.columns[j] += l.hsic(l) / self.batches

    def cka(self) -> NDArray[np.float64]:
        """(rows, columns); nan where float32 left a HSIC(K, K) below 0."""
        value = self.across / (self.rows[:, None].sqrt() * self.columns[None, :].sqrt())
        return np.asarray(value.double().numpy())


class _Gram:
    """K = X·Xᵀ with the diagonal 0 in float32, and the products with ones that its terms need."""

    def __init__(self, features: Tensor) -> None:
        X = features.detach().flatten(1)
        self.K = (X @ X.t()).fill_diagonal_(0.0)
        self.ones = torch.ones(len(X), 1, device=X.device)
        self.rows = self.ones.t() @ self.K  # (1, n)
        self.total = self.rows @ self.ones @ self.ones.t()  # (1, n), the sum in each place

    def hsic(self, other: _Gram) -> float:
        """Song et al. (2012), equation 5, each term rounded to float32 before the next."""
        n = len(self.K)
        value = torch.trace(self.K @ other.K)
        value += ((self.total @ other.K @ self.ones) / ((n - 1) * (n - 2))).item()
        value -= ((self.rows @ other.K @ self.ones) * 2 / (n - 2)).item()
        return float((1 / (n * (n - 3)) * value).item())
