"""Network + images + attacks -> a store."""

from __future__ import annotations

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
    inputs_from: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write the activations of every layer for the same images under every condition.

    Work goes on in `OUT.part`, from which the same call continues after a kill, and takes the
    final name at the end. On a finished store the same call does nothing; one with another attack
    makes a new file with that condition added. Attacks run at full strength (mode "represent").

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
        inputs_from: another store, on whose attacked images this network is run; its conditions
            keep their names.
        overwrite: replace a store of another request.
        progress: told of the size before the work, and of every batch.

    Raises:
        UserError: settings that cannot be meant; a store of another request; too little disk
            space; NaN or inf in activations. Nothing is left behind then, unless the disk ran
            full on the way: that can be continued.
    """
    began = time.perf_counter()
    out, progress = Path(out), progress or Silent()
    runtime = runtime or Runtime.of(precision="float32", image_size=data.images.shape[-1])
    check_writable(out)
    if batch_size < 1 or dtype not in DTYPES:
        raise UserError(
            f"extract expects a batch size of at least 1 and dtype {' or '.join(DTYPES)}; got "
            f"{batch_size} and {dtype!r}"
        )
    if any(not spec.is_control for spec in attacks):
        loaded.require_head("an attack")
    how = parse_reduce(reduce)
    model = runtime.place(loaded.model)
    selection = select_layers(model, runtime.images(to_float(data.images[:8])), layers)
    request = {
        "model": loaded.sha256,
        "data": data.fingerprint,
        "samples": _samples_hash(data),
        "layers": [layer.name for layer in selection.layers],
        "reduce": how.text,
        "precision": runtime.precision,
        "seed": seed,
        "dtype": dtype,
    }
    notes = [selection.note] if selection.note else []
    there = _finished(out, request) if out.exists() and not overwrite else {}
    run = _Run(loaded.name, model, data, runtime, how, selection.layers, batch_size, dtype)
    try:
        conditions = _conditions(attacks, run, seed, control, there, inputs_from, notes)
        todo = _missing(conditions, there, out)
        if there and not todo:
            return _report(out, "already done", notes, began, 0.0)
        status = "condition added" if there else "written"
        part_path = out.with_name(out.name + ".part")
        wanted = {**there, **{source.name: source.attack for source in todo}}
        part = _unfinished(part_path, request, wanted, overwrite)
        if part is not None:
            status = "continued"
        _announce(out, part_path, run, todo, copied=out.stat().st_size if there else 0,
                  notes=notes, progress=progress)  # fmt: skip
        attrs = {
            "repsim_version": __version__,
            "request": request,
            "layers": request["layers"],
            "model": _model_json(loaded),
            "data": _data_json(data),
        }
        make = _Maker(out if there else None, part_path, attrs, data, todo)
        rate = _work(run, todo, part, make, out, progress)
    finally:
        for source in run.opened:
            source.close()
    return _report(out, status, notes, began, rate)


def _announce(
    out: Path,
    part_path: Path,
    run: _Run,
    todo: Sequence[_Source],
    *,
    copied: int,
    notes: list[str],
    progress: Progress,
) -> None:
    """Say what the file will take, and refuse if the disk has no room for it."""
    data = run.data
    size = copied + estimate_bytes(
        run.layers,
        len(data),
        len(todo) + (copied > 0),
        reduce=run.how.text,
        image_shape=data.images.shape[1:],
        classes=len(data.classes),
        dtype=run.dtype,
    )
    if copied:
        size -= estimate_bytes([], len(data), 1, image_shape=data.images.shape[1:])
    taken = part_path.stat().st_blocks * 512 if part_path.exists() else 0
    require_space(out, size - taken)
    line = (
        f"{out.name} will take {show_bytes(size)} on disk: {len(data)} samples, {len(run.layers)} "
        f"layers, {', '.join(source.name for source in todo)}"
    )
    notes.append(line)
    progress.say(line)


