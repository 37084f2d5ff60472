"""The one call: settle what is asked for and what is there, then do what is missing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repsim import __version__
from repsim.attacks import AttackSpec
from repsim.attacks.table import INNER
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, to_float
from repsim.errors import UserError
from repsim.extract.conditions import asked_conditions
from repsim.extract.pipeline import Pipeline
from repsim.extract.ranks import Ranks
from repsim.extract.report import ExtractReport, estimate_bytes, report
from repsim.extract.request import (
    data_json,
    finished_conditions,
    missing_conditions,
    model_json,
    request_json,
)
from repsim.extract.shares import Share, Work, discard, publish, settle, tidy
from repsim.files import check_writable
from repsim.hooks import select_layers
from repsim.progress import Progress, Silent
from repsim.reduce import parse_reduce
from repsim.runtime import Runtime
from repsim.store import (
    COMPRESSIONS,
    Condition,
    DiskFull,
    Part,
    free_bytes,
    require_space,
    show_bytes,
    stored_bytes,
)

DTYPES = ("auto", "float32")


def extract(
    loaded: LoadedModel,
    data: ImageData,
    attacks: Sequence[AttackSpec],
    out: str | Path,
    *,
    layers: str | Sequence[str] = "blocks",
    reduce: str = "flatten",
    batch_size: int = 128,
    runtime: Runtime | None = None,
    seed: int = 0,
    control: bool = True,
    dtype: str = "auto",
    compress: str = "none",
    inputs_from: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> ExtractReport:
    """Write the activations of every layer for the same images under every condition.

    Work goes on in `OUT.part`, from which the same call continues after a kill, and takes the
    final name at the end. On a finished store the same call does nothing; one with another attack
    makes a new file with that condition added. Attacks run at full strength (mode "represent").

    Several processes each write files of their own in `OUT.parts/`, over which `OUT` gets virtual
    data sets; the numbers are those of one process. Any number of processes continues after a
    kill, or adds a condition.

    Args:
        loaded: the network.
        data: the images, already drawn; rows keep their order.
        attacks: what to attack with; each makes a condition.
        out: the store's file.
        layers: as `select_layers` takes it.
        reduce: "flatten", "avgpool" or "project:K".
        batch_size: images at once; changes no random draw.
        runtime: device, precision, layout; float32 and measured defaults if not given.
        seed: of the attacks' draws.
        control: add noise of the first attack's size, unless a control is there.
        dtype: "auto" (float16 where it is enough; see `storage_dtype`) or "float32".
        compress: how images and layers are compressed, without loss: "none", "lzf" (faster) or
            "gzip" (smaller). No part of the request: what is there stays as it is. Stores above
            1 GiB are then written in parts, of which a kill loses the one under way.
        inputs_from: another store, on whose attacked images this network is run; its conditions
            keep their names.
        overwrite: replace a store of another request.
        progress: told of the size before the work, and of every batch.
        ranks: this process among several that all make this call; see `repsim.extract.join`.

    Raises:
        UserError: settings that cannot be meant; a store of another request; too little disk
            space; NaN or inf in activations. Nothing is left behind then, unless the disk ran
            full on the way: that can be continued.
    """
    began = time.perf_counter()
    ranks = ranks or Ranks()
    ranks.begin()
    out, progress = Path(out), (progress if ranks.main else None) or Silent()
    runtime = runtime or Runtime.of(precision="float32")
    check_writable(out)
    if batch_size < 1:
        raise UserError(f"--batch-size expects at least 1; got {batch_size}")
    if dtype not in DTYPES:
        raise UserError(f"--dtype expects {' or '.join(DTYPES)}; got {dtype!r}")
    if compress not in COMPRESSIONS:
        raise UserError(f"--compress expects {', '.join(COMPRESSIONS)}; got {compress!r}")
    for spec in attacks:
        if not spec.is_control and spec.name not in INNER:
            loaded.require_head(f"attack {spec.condition}")
    head = bool(loaded.meta["head"])
    how = parse_reduce(reduce)
    model = runtime.place(loaded.model)
    selection = select_layers(model, runtime.images(to_float(data.images[:8])), layers)
    notes = [selection.note] if selection.note else []
    names = [layer.name for layer in selection.layers]
    request = request_json(loaded, data, names, how.text, runtime.precision, seed, dtype)
    there = finished_conditions(out, request) if out.exists() and not overwrite else {}

    with ExitStack() as stack:
        asked = asked_conditions(
            attacks, model, data, runtime, seed, control, there, inputs_from, notes, stack
        )
        todo = missing_conditions(asked, there, out)
        if there and not todo:
            return report(out, "already done", notes, began, 0.0, head=head)

        size = estimate_bytes(
            selection.layers,
            len(data),
            [source.kind for source in todo],
            reduce=reduce,
            image_shape=tuple(data.images.shape[1:]),
            classes=len(data.classes),
            dtype=dtype,
        )
        copied = out.stat().st_size if there else 0

        def begin() -> dict[str, Any]:
            """Look at what is there, once everybody has looked at the finished store."""
            work = settle(
                out, request, there, {source.name: source.attack for source in todo},
                batch_size=batch_size, samples=len(data), processes=ranks.world,
                compressed_bytes=0 if compress == "none" else size, overwrite=overwrite,
            )  # fmt: skip
            needed, free = copied + size - work.taken, free_bytes(out)
            if compress == "none":
                require_space(out, needed)
            elif needed > free:
                progress.say(
                    f"{out.name}: {show_bytes(free)} are free, less than its "
                    f"{show_bytes(needed)} before compression"
                )
            return asdict(work)

        ranks.meet("looked")
        work = Work(**ranks.first("work", begin))
        shares = work.shares(out)
        mine = shares[ranks.rank :: ranks.world]
        wanted = [*there, *(source.name for source in todo)]
        most = "" if compress == "none" else "at most "
        progress.say(
            f"{out.name} will take {most}{show_bytes(copied + size)} on disk: {len(data)} samples, "
            f"{len(names)} layers, {', '.join(wanted)}"
        )
        attrs = {
            "repsim_version": __version__,
            "request": request,
            "layers": names,
            "model": model_json(loaded),
            "data": data_json(data),
        }
        known = work.reasons

        def agree(reasons: dict[str, str]) -> dict[str, str]:
            """Those of the first batch of all, which is rank 0's."""
            nonlocal known
            if known is None:
                known = ranks.first("reasons", lambda: reasons)
            return known

        pipeline = Pipeline(
            loaded.name, model, data, runtime, how, selection.layers, todo, batch_size, dtype,
            compress, agree,
        )  # fmt: skip
        started = time.perf_counter()
        rows = sum(share.stop - share.start for share in mine)
        done = sum(share.written for share in mine)
        with progress.task("extract", rows, done=done, unit="img") as task:
            for share in mine:
                if share.done:
                    continue
                make = partial(_make, share, work, out if there else None, attrs, data, ranks)
                try:
                    pipeline.run(share, make, task.advance)
                except DiskFull:
                    raise
                except UserError:  # the same again would fail again
                    ranks.fail()
                    if work.number:
                        discard(shares)
                    raise
        ranks.meet("written")
        if ranks.main:
            if work.number:
                publish(out, shares, bool(there), attrs, _samples(data, 0, len(data)))
            tidy(out)
        ranks.meet("published")
    continued = any(share.begun for share in shares)
    status = "continued" if continued else "condition added" if there else "written"
    left = len(data) - sum(share.written for share in shares)
    rate = left / (time.perf_counter() - started)
    return report(out, status, notes, began, rate, head=head)


def _make(
    share: Share,
    work: Work,
    finished: Path | None,
    attrs: Mapping[str, Any],
    data: ImageData,
    ranks: Ranks,
    conditions: list[Condition],
) -> Part:
    """The file of a share, once the first batch has told what its data sets look like."""
    count = share.stop - share.start
    if work.number:
        share.path.parent.mkdir(exist_ok=True)
    copied = finished.stat().st_size if finished and not work.number else 0
    if all(c.compress == "none" for made in conditions for c in made.columns.values()):
        needed = sum(stored_bytes(made.columns.values(), count) for made in conditions)
        require_space(share.path, copied + needed)
    if there := Part.reopen(share.part):  # by another process since; if it is alive, this refuses
        there.close()
    share.part.unlink(missing_ok=True)  # left by an earlier process, not to be trusted
    if not work.number:
        if finished:
            return Part.extend(share.part, finished, conditions)
        return Part.create(share.part, attrs, _samples(data, 0, count), conditions)
    cut = {"start": share.start, "stop": share.stop, "bounds": work.bounds}
    rows = _samples(data, share.start, share.stop)
    part = Part.create(share.part, {**attrs, "share": cut}, rows, conditions)
    if ranks.failed:  # and may have removed all parts just before this one was made
        part.discard()
        raise UserError(f"{share.part}: another process failed; see what it says")
    return part


def _samples(data: ImageData, start: int, stop: int) -> dict[str, np.ndarray]:
    """What a store says of its images."""
    return {
        "index": data.index[start:stop].numpy(),
        "label": data.labels[start:stop].numpy(),
        "id": data.ids[start:stop],
    }
