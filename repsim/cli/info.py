"""`repsim info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from repsim.cli.options import output_options

LONG = 80  # letters of nested values that stay on one line
MOST = 12  # entries of one level


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@output_options
def info(file: Path, json_file: Path | None, quiet: bool) -> None:
    """Say what a checkpoint, a store or a result holds.

    \b
    repsim info ckpt.pt
    repsim info features.h5
    repsim info cka.h5
    """
    from repsim.cli.common import check_outputs, write_json
    from repsim.errors import UserError

    check_outputs(json_file)
    if not file.is_file():
        raise UserError(f"info expects a file; there is no {file}")
    with open(file, "rb") as opened:
        is_hdf5 = opened.read(8) == b"\x89HDF\r\n\x1a\n"
    found = _hdf5(file) if is_hdf5 else _checkpoint(file)
    write_json(json_file, found)
    if not quiet:
        width = max(map(len, found))
        for key, value in found.items():
            if isinstance(value, dict) and len(json.dumps(value)) > LONG:
                click.echo(key)
                _tree(value)
            else:
                click.echo(f"{key:<{width}}  {_show(value)}")


def _tree(value: dict[str, Any], depth: int = 1) -> None:
    """Nested values, one a line; --json has them in full."""
    items = list(value.items())
    for key, inner in items[:MOST]:
        if isinstance(inner, dict) and len(json.dumps(inner)) > LONG:
            click.echo(f"{'  ' * depth}{key}")
            _tree(inner, depth + 1)
        else:
            text = _show(inner)
            text = text if len(text) <= 4 * LONG else f"{text[: 4 * LONG]} ... (--json has all)"
            click.echo(f"{'  ' * depth}{key}: {text}")
    if len(items) > MOST:
        click.echo(f"{'  ' * depth}... {len(items) - MOST} more; --json has all")


def _show(value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        few = ", ".join(map(str, value[:12]))
        return few + (f", ... ({len(value)} in all)" if len(value) > 12 else "")
    return json.dumps(value)


def _checkpoint(path: Path) -> dict[str, Any]:
    from repsim.checkpoint import find_state_dict, load_model, read_plain

    content = read_plain(path)
    if not (isinstance(content, dict) and "schema" in content):
        weights = find_state_dict(path, content)
        return {"kind": "foreign state dict (give --arch to use it)", "tensors": len(weights),
                "parameters": sum(v.numel() for v in weights.values()),
                "names": list(weights)}  # fmt: skip
    loaded = load_model(path)
    meta = dict(loaded.meta)
    history = meta.pop("history", [])
    return {
        "kind": "checkpoint",
        "sha256": loaded.sha256,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        **meta,
        "epochs": len(history),
        "last_epoch": history[-1] if history else {},
    }


def _hdf5(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path) as file:
        is_result, is_probes = "similarity" in file, "repsim_probes" in file.attrs
    if is_probes:
        from repsim.probe import load_probes

        report = load_probes(path)
        return {"kind": "probes", "network": report.network, "layers": report.layers,
                "samples": len(report.labels), "rows": len(report.table),
                **{name: list(dict.fromkeys(report.table[name]))
                   for name in ("solver", "train", "test", "attack")},
                "notes": report.notes, "provenance": report.provenance}  # fmt: skip
    if not is_result:
        from repsim.store import open_store

        with open_store(path) as store:
            accuracy = {}
            for name in store.conditions:
                correct, samples = store.accuracy(name)
                accuracy[name] = round(correct / samples, 4)
            return {
                "kind": "store",
                "model": store.model,
                "data": store.data,
                "samples": len(store),
                "conditions": {name: store.attack(name) for name in store.conditions},
                "accuracy": accuracy,
                "layers": store.layers,
                "request": store.request,
            }
    from repsim.result import load_result

    result = load_result(path)
    attributes = {k: v.item() if hasattr(v, "item") else v for k, v in result.attrs.items()}
    for key in ("summary", "provenance", "notes"):
        if key in attributes:
            attributes[key] = json.loads(attributes[key])
    rows, columns = result["similarity"].shape
    kind = "difference of two results" if "difference" in attributes else "result"
    return {"kind": kind, "rows": rows, "columns": columns, **attributes,
            "x_layer": [str(v) for v in result["x_layer"].values],
            "y_layer": [str(v) for v in result["y_layer"].values]}  # fmt: skip
