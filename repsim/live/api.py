"""All layers of any networks under any conditions against one another, as the networks run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from repsim import __version__
from repsim.attacks import AttackSpec
from repsim.attacks.table import INNER
from repsim.checkpoint import LoadedModel, weights_sha256
from repsim.compare import AllPairs, compare_all, hash_ids
from repsim.data import ImageData, to_float
from repsim.distributed import barrier, rank, world
from repsim.errors import UserError
from repsim.extract.conditions import asked_conditions
from repsim.hooks import Layer, select_layers
from repsim.live.cache import BatchGrams, GramCache
from repsim.live.forward import Pass, batch_grams
from repsim.live.plan import Plan, plan_batches
from repsim.live.repeated import digests, first_of
from repsim.progress import Progress, Silent
from repsim.runtime import Runtime
from repsim.similarity import MEMORY, ArrayRepresentation, Pairs, Representation
from repsim.similarity.estimate import GROUPS, few_groups, normalised, undefined
from repsim.similarity.grams import PackedGram
from repsim.similarity.kernels import Kernel
from repsim.similarity.measure import Measure
from repsim.similarity.minibatch import BatchSums, batch_hsic, rbf
from repsim.similarity.predictions import LOGITS
from repsim.similarity.table import needs

if TYPE_CHECKING:
    import xarray as xr


@dataclass
class LiveGrams:
    """What the passes of `live_grams` left.

    Attributes:
        representations: Gram matrices of all layers × conditions × networks, where one holds all
            samples; else none.
        minibatch: their minibatch CKA, where each holds a batch; else None.
        sides: (network, condition) in order.
        kinds: "clean", "control" or "attack" of each condition.
        predictions: by side int64 (n,): -1 where the network has no head, -2 for images that fill
            no batch.
        data: the images.
        provenance: networks, data and attacks, as plain values.
        estimator: the one that is possible.
        reused: Gram matrices that were found in the cache, in passes of a batch.
        made: those that were made.
        kept: bytes that were written to the cache.
        notes: what the user should read.
        logits: by side (n, classes) float32, of networks with a head, where one Gram matrix holds
            all samples.
    """

    representations: list[Representation]
    minibatch: AllPairs | None
    sides: list[tuple[str, str]]
    kinds: dict[str, str]
    predictions: dict[tuple[str, str], NDArray[np.int64]]
    data: ImageData
    provenance: dict[str, Any]
    estimator: str
    reused: int
    made: int
    kept: int
    notes: list[str] = field(default_factory=list)
    logits: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def outputs(self) -> list[Representation]:
        """The logits of every side as a layer named `logits`, for measures of predictions.

        Raises:
            UserError: a network that has no linear head, or samples in several Gram matrices.
        """
        missing = [side for side in self.sides if side not in self.logits]
        if missing:
            raise UserError(
                f"this measure expects logits; {missing[0][0]} has no linear head; try a measure "
                "of representations (repsim compare --measure list)"
            )
        return [
            ArrayRepresentation.from_array(
                self.logits[side], layer=LOGITS, condition=side[1], model=side[0]
            )
            for side in self.sides
        ]

    def right(self, side: tuple[str, str]) -> NDArray[np.bool_] | None:
        """Of each image whether it is classified correctly, (n,); None without a head."""
        found = self.predictions[side]
        return None if (found == -1).any() else found == self.data.labels.numpy()

    def accuracy(self, side: tuple[str, str]) -> tuple[int, int] | None:
        """Images that are right both clean and under the condition, and images looked at.

        None without a head.
        """
        right, clean = self.right(side), self.right((side[0], "clean"))
        if right is None or clean is None:
            return None
        right = right & clean
        seen = self.predictions[side] != -2
        return int(right[seen].sum()), int(seen.sum())


@dataclass
class LiveReport(LiveGrams):
    """The same with all layers compared.

    Attributes:
        everything: all layers × conditions × networks against one another.
    """

    everything: AllPairs = field(kw_only=True)

    def matrix(self) -> xr.Dataset:
        """Everything against everything as a result; see `repsim.compare.compare`."""
        return self.everything.whole()


def compare_models(
    models: Sequence[LoadedModel],
    data: ImageData,
    attacks: Sequence[Sequence[AttackSpec]] = (),
    *,
    measure: str | Measure = "cka",
    kernel: str = "linear",
    groups: int = GROUPS,
    memory: int = MEMORY,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> LiveReport:
    """The similarity of all layers × conditions × networks to one another.

    Args:
        models, data, attacks, kernel, groups, memory, runtime, progress: see `live_grams`.
        measure: one that needs Gram matrices or logits only; anything but cka needs all samples
            in one.
        options: further ones of `live_grams`.

    Raises:
        UserError: as in `live_grams`, or a measure that needs more than there is.
    """
    runtime = runtime or Runtime.of(precision="float32")
    grams = live_grams(
        models, data, attacks, kernel=kernel, groups=groups, memory=memory, runtime=runtime,
        progress=progress, whole=measure != "cka", **options,
    )  # fmt: skip
    everything = grams.minibatch
    if everything is None:
        cka = measure == "cka"
        outputs = needs(measure) == "logits"
        everything = compare_all(
            grams.outputs() if outputs else grams.representations, measure=measure, groups=groups,
            memory=memory, estimator=grams.estimator if cka else None,
            kernel=kernel if cka else None, ids=data.ids, device=runtime.device, progress=progress,
        )  # fmt: skip
    found = {item.name: getattr(grams, item.name) for item in fields(grams)}
    found["notes"] = list(dict.fromkeys([*grams.notes, *everything.pairs.notes]))
    return LiveReport(**found, everything=everything)


def live_grams(
    models: Sequence[LoadedModel],
    data: ImageData,
    attacks: Sequence[Sequence[AttackSpec]] = (),
    *,
    layers: str | Sequence[str] = "blocks",
    estimator: str | None = None,
    kernel: str = "linear",
    groups: int = GROUPS,
    batch_size: int = 256,
    memory: int = MEMORY,
    cache: GramCache | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    control: bool = True,
    whole: bool = False,
    progress: Progress | None = None,
) -> LiveGrams:
    """The Gram matrices of all layers × conditions × networks, or their minibatch CKA.

    Each network sees each batch once under each condition; flattened features, nothing
    approximated, no activation written. With a cache the Gram matrices are kept, and another call
    takes those that are there. In a process group (see `repsim.distributed`) the ranks share the
    batches, or where one Gram matrix holds all samples the passes.

    Args:
        models: networks with a name each.
        data: the images, already drawn; rows are these images whatever the order of a loader.
        attacks: for each network those made on it (a condition each); none for clean images only.
        layers: as `select_layers` takes it.
        estimator: "debiased", "biased", "minibatch"; None is debiased over all samples where they
            fit the memory, else minibatch.
        kernel: "linear", "rbf" or "rbf:FRACTION" of the median distance, of minibatch CKA.
        groups: jackknife groups, of batches or later of samples.
        batch_size: images at once, and of a minibatch.
        memory: bytes for activations and Gram matrices; see `plan_batches`.
        cache: where Gram matrices are kept.
        runtime: device, precision, layout.
        seed: of the attacks' draws.
        control: add noise of the first attack's size.
        whole: refuse where a Gram matrix cannot hold all samples.
        progress: told of every pass of a batch.

    Raises:
        UserError: settings that cannot be meant, networks of one name, samples too few, memory
            too small for the estimator asked for, or activations that are not finite.
    """
    runtime = runtime or Runtime.of(precision="float32")
    cache, progress = cache or GramCache(None), progress or Silent()
    if batch_size < 1:
        raise UserError(f"--batch-size expects at least 1; got {batch_size}")
    Kernel.of(kernel)
    names = [loaded.name for loaded in models]
    if not models or len(set(names)) < len(names):
        raise UserError(
            f"a comparison expects networks of different names; got {', '.join(names) or 'none'}"
        )
    notes: list[str] = []
    with ExitStack() as stack:
        passes = _passes(
            models, data, list(attacks) or [()] * len(models), layers, runtime, seed, control,
            batch_size, notes, stack,
        )  # fmt: skip
        widest = max(
            ([int(np.prod(layer.shape)) for layer in one.layers] for one in passes), key=sum
        )
        count = sum(len(one.layers) for one in passes)
        plan = plan_batches(len(data), batch_size, widest, count, memory, estimator)
        weights = {loaded.name: weights_sha256(loaded.model) for loaded in models}
        passes = [
            _keyed(one, weights[one.loaded.name], data, plan, batch_size, runtime, seed)
            for one in passes
        ]
        if whole and not plan.whole:
            raise UserError(
                "this expects all samples in one Gram matrix: "
                + (plan.notes[0] if estimator is None else "leave --estimator minibatch out")
            )
        if plan.whole and world() > 1 and cache.folder is None:
            raise UserError(
                "several processes expect a --cache where they share Gram matrices of all samples"
            )
        work = _Work(passes, data, plan, batch_size, runtime, cache, progress)
        representations = work.whole() if plan.whole else []
        minibatch = None if plan.whole else work.minibatch(kernel, groups)
    return LiveGrams(
        representations=representations,
        minibatch=minibatch,
        sides=[(one.loaded.name, one.source.name) for one in passes],
        kinds={one.source.name: one.source.kind for one in passes},
        predictions=work.predictions,
        data=data,
        provenance=_provenance(passes, data, seed, runtime),
        estimator=plan.estimator,
        reused=work.reused,
        made=work.made,
        kept=work.kept,
        notes=list(dict.fromkeys([*plan.notes, *notes])),
        logits=work.logits,
    )


def _passes(
    models: Sequence[LoadedModel],
    data: ImageData,
    attacks: Sequence[Sequence[AttackSpec]],
    layers: str | Sequence[str],
    runtime: Runtime,
    seed: int,
    control: bool,
    batch_size: int,
    notes: list[str],
    stack: ExitStack,
) -> list[Pass]:
    """Networks × conditions, without their keys."""
    if len(attacks) != len(models):
        raise UserError(
            f"attacks expect a list for each of {len(models)} networks; got {len(attacks)}"
        )
    found = []
    for loaded, specs in zip(models, attacks, strict=True):
        for spec in specs:
            if not spec.is_control and spec.name not in INNER:
                loaded.require_head(f"attack {spec.condition}")
        model = runtime.place(loaded.model)
        chosen = select_layers(model, runtime.images(to_float(data.images[:8])), layers)
        notes += [f"{loaded.name}: {chosen.note}"] if chosen.note else []
        sources = asked_conditions(
            specs, model, data, runtime, seed, control, {}, None, notes, stack
        )
        found += [Pass(loaded, source, chosen.layers, "") for source in sources]
    return found


def _keyed(
    one: Pass,
    weights: str,
    data: ImageData,
    plan: Plan,
    batch_size: int,
    runtime: Runtime,
    seed: int,
) -> Pass:
    """The pass with the name of its Gram matrices: all that decides what is in them."""
    attacked = one.source.kind != "clean"
    about = {
        "model": one.loaded.content,
        "weights": weights,  # a notebook may have changed them
        "meta": {
            key: one.loaded.meta.get(key) for key in ("arch", "arch_args", "mean", "std", "head")
        },
        "condition": one.source.attack,
        "seed": seed if attacked else None,
        "samples": _hash(data),
        "parts": [plan.parts[0], plan.parts[-1], len(plan.parts)],
        # An attack's draws do not depend on it; that of images on one another does.
        "batch_size": batch_size if attacked else None,
        "precision": runtime.precision,
    }
    plain = {key: _plain(value) for key, value in about.items()}
    return Pass(one.loaded, one.source, one.layers, GramCache.key(plain))


def _plain(value: Any) -> Any:
    """Tuples and mappings of any kind as JSON has them."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _hash(data: ImageData) -> str:
    rows = data.ids.astype("<u8").tobytes() + data.labels.numpy().astype("<i8").tobytes()
    return hashlib.sha256(rows).hexdigest()


def _provenance(
    passes: Sequence[Pass], data: ImageData, seed: int, runtime: Runtime
) -> dict[str, Any]:
    """Where the numbers come from, as plain values."""
    return {
        "repsim_version": __version__,
        "models": {
            one.loaded.name: {
                "sha256": one.loaded.sha256,
                **{key: one.loaded.meta.get(key) for key in ("arch", "scheme", "scenario")},
            }
            for one in passes
        },
        "data": {
            "name": data.name, "split": data.split, "fingerprint": data.fingerprint,
            "samples": len(data), "rows": _hash(data),
        },
        "attacks": {
            f"{one.loaded.name}:{one.source.name}": _plain(one.source.attack) for one in passes
        },
        "seed": seed,
        "precision": runtime.precision,
    }  # fmt: skip


class _Work:
    """The passes over the data, with what they have left in the cache."""

    def __init__(
        self,
        passes: Sequence[Pass],
        data: ImageData,
        plan: Plan,
        batch_size: int,
        runtime: Runtime,
        cache: GramCache,
        progress: Progress,
    ) -> None:
        self.passes, self.data, self.plan = passes, data, plan
        self.batch_size, self.runtime, self.cache = batch_size, runtime, cache
        self.progress = progress
        self.reused = self.made = self.kept = 0
        self.predictions = {
            (one.loaded.name, one.source.name): np.full(len(data), -2) for one in passes
        }
        self.logits: dict[tuple[str, str], Tensor] = {}

    def grams(self, one: Pass, batch: int, *, make: bool = True) -> BatchGrams | None:
        """Of one batch, from the cache or made and kept."""
        rows = self.plan.parts[batch]
        ids = self.data.ids[rows[0] : rows[1]]
        found = self.cache.load(one.key, batch, one.names, ids)
        if found is not None:
            self.reused += 1
        elif make:
            wanted = self._with_those_kept(one, batch)
            found = batch_grams(wanted, self.data, rows, self.batch_size, self.runtime)
            about = {"model": one.loaded.name, "condition": one.source.name}
            self.kept += self.cache.save(one.key, batch, found, ids, about)
            self.made += 1
            found = found.only(one.names)
        if found is not None:
            logits = found.logits
            head = bool(one.loaded.meta["head"])
            self.predictions[one.loaded.name, one.source.name][rows[0] : rows[1]] = (
                logits.argmax(1).numpy() if head else -1
            )
        return found

    def _with_those_kept(self, one: Pass, batch: int) -> Pass:
        """The pass with the layers that the cache has too, so that none are lost from it."""
        there = self.cache.layers(one.key, batch)
        if set(there) <= set(one.names):
            return one
        everything = select_layers(
            one.loaded.model, self.runtime.images(to_float(self.data.images[:8])), "all"
        ).layers
        wanted = {*there, *one.names}
        layers: list[Layer] = [layer for layer in everything if layer.name in wanted]
        return Pass(one.loaded, one.source, layers, one.key)

    def whole(self) -> list[Representation]:
        """All samples in one Gram matrix."""
        found: dict[int, BatchGrams] = {}
        with self.progress.task("networks", len(self.passes), unit="pass") as task:
            for number, one in enumerate(self.passes):
                if number % world() == rank():
                    made = self.grams(one, 0)
                    assert made is not None
                    found[number] = made
                task.advance(1)
        barrier()
        representations: list[Representation] = []
        for number, one in enumerate(self.passes):
            grams = found.get(number) or self.grams(one, 0)
            assert grams is not None
            if one.loaded.meta["head"]:
                self.logits[one.loaded.name, one.source.name] = grams.logits
            representations += [
                PackedGram(
                    grams.packed[i], len(self.data), grams.features[name], layer=name,
                    condition=one.source.name, model=one.loaded.name,
                )
                for i, name in enumerate(one.names)
            ]  # fmt: skip
        return representations

    def minibatch(self, kernel: str, groups: int) -> AllPairs:
        """Batch by batch; the ranks share the batches."""
        keys = [
            (one.loaded.name, one.source.name, name) for one in self.passes for name in one.names
        ]
        contents = np.zeros(len(keys), dtype=np.int64)
        batches, size = len(self.plan.parts), self.plan.size
        sums = BatchSums(len(keys), batches, groups)
        chosen = Kernel.of(kernel)
        convert = None if chosen.bandwidth is None else partial(rbf, fraction=chosen.bandwidth)
        mine = range(rank(), batches, world())
        with self.progress.task("batches", len(mine) * len(self.passes), unit="pass") as task:
            for batch in mine:
                packed, place = [], 0
                for one in self.passes:
                    found = self.grams(one, batch)
                    assert found is not None
                    contents[place : place + len(found.packed)] += digests(found.packed, batch)
                    place += len(found.packed)
                    packed.append(found.packed.to(self.runtime.device))
                    task.advance(1)
                stack = torch.cat(packed)
                if convert is not None:
                    stack = convert(stack, size)
                sums.add(batch, batch_hsic(stack, size).cpu().numpy())
        _reduce(sums, contents, self.predictions)
        value, replicates = sums.value(), sums.replicates()
        attributes = {
            "estimator": "minibatch", "kernel": chosen.name, "batch_size": size,
            "batches": batches,
        }  # fmt: skip
        if chosen.bandwidth is not None:
            attributes["bandwidth"] = chosen.bandwidth
        named = [_Named(*key) for key in keys]
        notes = undefined(named, value, "minibatch")  # type: ignore[arg-type]
        notes += few_groups(replicates, batches)
        if replicates is not None:
            replicates = normalised(replicates)
        pairs = Pairs(normalised(value), replicates, sums.sizes, attributes, notes)
        return AllPairs(
            keys, batches * size, "cka", pairs, first_of(keys, contents), hash_ids(self.data.ids)
        )


@dataclass(frozen=True)
class _Named:
    """The names of a representation, for messages."""

    model: str
    condition: str
    layer: str


def _reduce(
    sums: BatchSums,
    contents: NDArray[np.int64],
    predictions: dict[tuple[str, str], np.ndarray],
) -> None:
    """Sums over the ranks; predictions from whichever rank has them."""
    if world() == 1:
        return
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.from_numpy(sums.sums).to(device)
    dist.all_reduce(total)
    sums.sums = total.cpu().numpy()
    both = torch.from_numpy(contents).to(device)
    dist.all_reduce(both)
    contents[:] = both.cpu().numpy()
    for side, found in predictions.items():
        seen = torch.from_numpy(found).to(device)
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        predictions[side] = seen.cpu().numpy()
