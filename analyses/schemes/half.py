"""Weights of checkpoints in half precision: half the bytes, and repsim reads them into float32.

    python analyses/schemes/half.py FOLDER checkpoints/cifar10-10k-sl-at-1.pt ...

writes files of the same names into FOLDER. Measure their accuracy again: it is another network,
by some 1e-3 of each weight.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch


def half(weights: dict[str, Any]) -> dict[str, Any]:
    """Floating point tensors in float16; counts stay."""
    found = {name: x.half() if x.is_floating_point() else x for name, x in weights.items()}
    large = [name for name, x in found.items() if x.is_floating_point() and not x.isfinite().all()]
    if large:
        raise SystemExit(
            f"expected weights below 65,504, which float16 can hold; {large[0]} is not"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for path in args.checkpoints:
        content = torch.load(path, weights_only=True)
        for part in (content, content.get("projector")):
            if part:
                part["state_dict"] = half(part["state_dict"])
        torch.save(content, args.folder / path.name)


if __name__ == "__main__":
    main()
