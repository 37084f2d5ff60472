"""Figures of the findings whose networks or pairs of networks are points: 6 and 8."""

from __future__ import annotations

from typing import Any

import numpy as np

from repsim.plot.points import Point, networks_as_points
from repsim.plot.study import Line, scheme_color
from repsim.report.drawing import AT_COLOR, CONTROL, ST_COLOR, Drawing
from repsim.report.figures import Drawn, alone, drawn
from repsim.report.groups import across_schemes, seeds, usual
from repsim.report.read import CLEAN, records
from repsim.report.words import size

_KINDS = (("st", "standard", ST_COLOR), ("at", "adversarial", AT_COLOR))


def robust_accuracy(draw: Drawing) -> list[Drawn | None]:
    """Robust accuracy against the similarity at the end of the network."""
    own, table, robust = draw.study.own, draw.study.accuracy, draw.study.robust
    if own is None or table is None or robust is None:
        return []
    known = {row["network"]: row for row in records(table) if row["condition"] == robust}
    points = []
    for m in draw.study.networks:
        if m.name not in known or own not in draw.study.conditions(m.name):
            continue
        row = known[m.name]
        found = draw.pairs.alignment((m.name, CLEAN), (m.name, own))
        value, ends = found["alignment_last_third"], found.get("alignment_last_third_ci")
        if value is None:
            continue
        odd = m.scenario not in ("st", "at") or m not in usual(draw.study, m.scenario)
        label = "untrained" if m.scenario == "untrained" else f"{m.scheme} {m.scenario}"
        points.append(
            Point(
                label, value, None if ends is None else (ends[0], ends[1]),
                float(row["accuracy"]), (float(row["lower"]), float(row["upper"])),
                CONTROL if m.scenario == "untrained" else scheme_color(m.scheme),
                {"st": "o", "at": "s", "full-at": "D", "partial-at": "^"}.get(m.scenario, "X"),
                m.scenario == "st",
                note=f"ε {size(m.eps, pixels=draw.pixels())}" if odd and m.eps else "",
            )
        )  # fmt: skip
    if len(points) < 2:
        return []
    return [
        drawn(
            "finding-6",
            "Each network: robust accuracy against the similarity of clean and attacked "
            "representations in the last third of its layers; lines: 95% intervals over "
            "images; ε: another size of the training attack.",
            "; ".join(f"{p.label}: similarity {p.x:.2f}, accuracy {p.y:.2f}" for p in points),
            lambda: alone(
                lambda ax: networks_as_points(
                    points,
                    ax,
                    x="CKA(clean, attacked), last third",
                    y=f"robust accuracy ({robust})",
                ),
                height=2.9,
            ),
            draw.folder,
        )
    ]


def functions(draw: Drawing) -> list[Drawn | None]:
    """Agreement of predictions and of probes."""
    table, own = draw.study.agreement, draw.study.own
    if table is None or own is None:
        return []
    return [_agreement(draw, table, own), *_probe_agreement(draw, table, own)]


def _agreement(draw: Drawing, table: Any, own: str) -> Drawn | None:
    rows = table[(table["what"] == "prediction") & (table["condition"] == own)]
    points = []
    for row in records(rows):
        kind = _kind(draw, str(row["a"]), str(row["b"]))
        if kind is None:
            continue
        label, color, marker, hollow = kind
        x = (str(row["a"]), own), (str(row["b"]), own)
        found = draw.pairs.alignment(*x)
        value, ends = found["alignment_last_third"], found.get("alignment_last_third_ci")
        if value is not None:
            points.append(
                Point(label, value, None if ends is None else (ends[0], ends[1]),
                      float(row["agreement"]), (float(row["lower"]), float(row["upper"])), color,
                      marker, hollow)
            )  # fmt: skip
    if not points:
        return None
    return drawn(
        "finding-8-predictions",
        "Pairs of networks on their own attacked images: how often they predict the same "
        "class, against the similarity of the last third of their layers; lines: 95% "
        "intervals over images.",
        "; ".join(f"{p.label}: similarity {p.x:.2f}, agreement {p.y:.2f}" for p in points[:12]),
        lambda: alone(
            lambda ax: networks_as_points(
                points, ax, x="CKA between networks, last third", y="agreeing predictions"
            ),
            height=2.9,
        ),
        draw.folder,
    )


def _kind(draw: Drawing, a: str, b: str) -> tuple[str, str, str, bool] | None:
    x, y = draw.study.network(a), draw.study.network(b)
    if x is None or y is None or draw.study.layers(a) != draw.study.layers(b):
        return None
    for scenario, color, marker in (("st", ST_COLOR, "o"), ("at", AT_COLOR, "s")):
        usuals = usual(draw.study, scenario)
        if x in usuals and y in usuals:
            if x.scheme == y.scheme:
                return f"seeds of one scheme, {scenario}", CONTROL, marker, scenario == "st"
            return f"different schemes, {scenario}", color, marker, scenario == "st"
    return None


def _probe_agreement(draw: Drawing, table: Any, own: str) -> list[Drawn | None]:
    rows = table[(table["what"] == "probe") & (table["condition"] == own)]
    lines, depth = [], None
    for scenario, word, color in _KINDS:
        networks = draw.alike(usual(draw.study, scenario), own)
        if not networks:
            continue
        names = draw.study.layers(networks[0].name)
        for pairs, control in ((across_schemes(networks), False), (seeds(networks), True)):
            wanted = {frozenset((a.name, b.name)) for a, b in pairs}
            both = zip(rows["a"].astype(str), rows["b"].astype(str), strict=True)
            chosen = np.array([frozenset(pair) in wanted for pair in both], dtype=bool)
            means = rows[chosen].groupby("layer")["agreement"].mean()
            if not len(means) or any(name not in means.index for name in names):
                continue
            depth, values = networks[0], means.loc[names].to_numpy(dtype=float)
            mark = ("^" if scenario == "st" else "v") if control else "os"[scenario == "at"]
            lines.append(
                Line(f"{'seeds' if control else 'schemes'}, {word}", values,
                     color=CONTROL if control else color, marker=mark,
                     hollow=scenario == "st", control=control)
            )  # fmt: skip
    if depth is None:
        return []
    return [
        draw.depth(
            "finding-8-probes", lines, depth,
            "How often the probes of one layer of two networks predict the same class on the "
            "networks' own attacked images; means over pairs; dashed: two seeds of one scheme.",
            "Probes", "agreement of probes",
        )
    ]  # fmt: skip
