"""A study's folder in a second: activations drawn at random, everything after them for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repsim.compare import AllPairs, compare_all
from repsim.findings import Evidence, Network
from repsim.findings.api import findings
from repsim.result.pairs import save_pairs
from repsim.similarity import ArrayRepresentation

SAMPLES = 40
LAYERS = ("relu", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "avgpool")
CONDITIONS = ("clean", "noise", "pgd", "shared")
EPS = 8 / 255
NETWORKS = [
    *(
        Network(f"{scheme}-{scenario}-{seed}", scheme, scenario, seed,
                None if scenario == "st" else EPS)
        for seed in (0, 1)
        for scheme in ("sl", "cl")
        for scenario in ("st", "at")
    ),
    Network("sl-at-eps16-0", "sl", "at", 0, 2 * EPS),
    Network("sl-full-at-0", "sl", "full-at", 0, EPS),
    Network("cl-full-at-0", "cl", "full-at", 0, EPS),
    Network("untrained-0", "sl", "untrained", 0),
]  # fmt: skip


def similarities(networks: list[Network] = NETWORKS, layers: tuple[str, ...] = LAYERS) -> AllPairs:
    """Late layers of standard networks move under attack; those of the others hardly."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(SAMPLES, 12))
    made = []
    for one in networks:
        own = rng.normal(size=(SAMPLES, 12))
        for depth, layer in enumerate(layers):
            turn = rng.normal(size=(12, 12))
            clean = (shared + (0.3 + 0.2 * depth) * own) @ turn
            for condition in CONDITIONS:
                size = {"clean": 0.0, "noise": 0.1}.get(condition, 1.0)
                size *= (0.6 * depth) if one.scenario == "st" else 0.5
                values = clean + size * rng.normal(size=clean.shape) * clean.std()
                made.append(
                    ArrayRepresentation(values, layer=layer, condition=condition, model=one.name)
                )
    return compare_all(made, groups=8)


def accuracy(networks: list[Network]) -> pd.DataFrame:
    """Clean and robust accuracy, made up."""
    rows = [
        (one.name, condition, value, value - 0.05, value + 0.05, 200)
        for i, one in enumerate(networks)
        for condition, value in (
            ("clean", 0.9 - 0.01 * i),
            ("pgd", 0.05 if one.scenario == "st" else 0.3 + 0.02 * i),
        )
    ]
    return pd.DataFrame(
        rows, columns=["network", "condition", "accuracy", "lower", "upper", "samples"]
    )


def agreement(networks: list[Network]) -> pd.DataFrame:
    """Of predictions and of probes, made up."""
    rows = [
        (a.name, b.name, what, layer, condition, 0.4 + 0.01 * i, 0.3, 0.7, 0.2, 200)
        for i, a in enumerate(networks)
        for b in networks[i + 1 :]
        for condition in ("clean", "pgd", "shared")
        for what, layer in [("prediction", ""), *(("probe", layer) for layer in LAYERS)]
    ]
    return pd.DataFrame(
        rows,
        columns=["a", "b", "what", "layer", "condition", "agreement", "lower", "upper", "kappa",
                 "samples"],
    )  # fmt: skip


def predictions(networks: list[Network], start: str = "") -> pd.DataFrame:
    """Of ten classes, drawn at random: of networks, or of the probes of a layer, "LAYER|"."""
    rng = np.random.default_rng(1)
    names = ["label", *(f"{start}{one.name}:{c}" for one in networks for c in CONDITIONS)]
    return pd.DataFrame(rng.integers(0, 10, size=(120, len(names))), columns=names)


def probes(networks: list[Network]) -> pd.DataFrame:
    """Clean, transfer and adaptive, made up."""
    rows = [
        (one.name, layer, 12, 12, "none", "ridge", 1.0, "clean", test, attack, value, value - 0.05,
         value + 0.05, 200)
        for one in networks[:3]
        for test, attack, value in (
            ("clean", "none", 0.9), ("noise", "none", 0.85), ("pgd", "transfer", 0.5),
            ("pgd", "adaptive", 0.2),
        )
        for layer in LAYERS
    ]  # fmt: skip
    return pd.DataFrame(
        rows,
        columns=["network", "layer", "features", "used_features", "reduce", "solver", "strength",
                 "train", "test", "attack", "accuracy", "lower", "upper", "samples"],
    )  # fmt: skip


def study_json(networks: list[Network]) -> dict[str, Any]:
    """What `repsim reproduce` writes beside the numbers."""
    kinds = ("train", "evaluate", "probe")
    return {
        "study": "universal",
        "preset": "test",
        "command": "repsim reproduce universal --preset test",
        "settings": {"preset": "test", "data": "digits", "model": "resnet8", "margin": 0.02,
                     "samples": 0, "evaluate": {"attacks": ["pgd,steps=3"], "samples": 200},
                     "compare": {"attack": "pgd,steps=3", "shared": []}},
        "conditions": {
            "own": "pgd", "shared": "shared", "noise": "noise", "robust": "pgd",
            "attack": {"text": "pgd,steps=3",
                       "params": {"eps": 8 / 255, "step_size": None, "steps": 3}},
        },
        "seeds": [0, 1],
        "versions": {"repsim": "0.1.0", "python": "3.11"},
        "hardware": {"processor": "a test's", "cores": 2},
        "made_on": [
            {"hardware": {"processor": name}, "versions": {"torch": "2.1"}, "device": device,
             "precision": "float32", "stages": stages}
            for name, device, stages in (
                ("a large one", "cuda", ["train-a", "train-b", "compare"]),
                ("a small one", "cpu", ["findings"]),
            )
        ],
        "networks": [
            {"name": one.name, "scheme": one.scheme, "scenario": one.scenario, "seed": one.seed,
             "eps": one.eps, "file": f"checkpoints/{one.name}.pt", "sha256": "ab" * 32,
             **({"source": "trained"} if i else {"source": "checkpoints", "from": "ready.pt"})}
            for i, one in enumerate(networks)
        ],
        "stages": [
            {"name": f"{kind}-{one.name}", "kind": kind, "network": one.name, "status": "done",
             "seconds": 61.0, "finished": "2026-01-02T03:04:05Z", "output": [f"{kind}.csv"],
             "command": f"repsim reproduce universal --stop-after {kind}-{one.name}"}
            for kind in kinds for one in networks
        ],
    }  # fmt: skip


def make_folder(folder: Path, networks: list[Network] = NETWORKS) -> AllPairs:
    """Write everything that a report is made of."""
    pairs = similarities(networks)
    save_pairs(folder / "similarity.h5", pairs)
    tables = {"accuracy": accuracy, "agreement": agreement, "probes": probes}
    for name, make in tables.items():
        make(networks).to_csv(folder / f"{name}.csv", index=False)
    evidence = Evidence(
        networks, pairs, own="pgd", shared="shared", accuracy=accuracy(networks),
        predictions=predictions(networks), probe_predictions=predictions(networks, "avgpool|"),
    )  # fmt: skip
    found = [one.to_json() for one in findings(evidence)]
    (folder / "findings.json").write_text(json.dumps(found))
    (folder / "study.json").write_text(json.dumps(study_json(networks)))
    return pairs
