"""Figures of a whole study: what decides, accuracies, heatmaps for paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from repsim.findings import Finding, Network, Number
from repsim.plot import panels
from repsim.plot.curves import COLORS, MARKERS
from repsim.plot.points import Point, accuracies, differences
from repsim.plot.study import scheme_color, scheme_marker
from repsim.report.drawing import Drawing
from repsim.report.figures import Drawn, alone, drawn
from repsim.report.groups import by_scheme, usual
from repsim.report.read import CLEAN, records
from repsim.report.tables import grouped
from repsim.report.words import SHORT, pretty

_PAIR_COLORS = ("#56B4E9", "#CC79A7", "#7f6000", "#444444")


def decisions(draw: Drawing, found: Sequence[Finding]) -> Drawn | None:
    """All differences that decide, one below the other."""
    schemes = list(dict.fromkeys(n.scheme for one in found for n in one.differences))
    groups: dict[str, dict[str, list[Point]]] = {}
    for one in found:
        if one.differences:
            groups[f"{one.key}. {SHORT.get(one.key, '')}: {one.verdict}"] = {
                pretty(label): [_difference(n, schemes) for n in members]
                for label, members in grouped(one.differences)
            }
    count = sum(1.3 + 1.15 * len(questions) for questions in groups.values())
    if not groups:
        return None
    margin = max(one.margin for one in found)
    return drawn(
        "decisions",
        "Every difference that decides a verdict, with its 95% interval; shaded: the margin "
        "within which differences mean nothing, stated beforehand; diamonds: the paper's.",
        "; ".join(f"{head}: {len(rows)} questions" for head, rows in groups.items()),
        lambda: alone(
            lambda ax: differences(groups, ax, margin=margin, label="difference"),
            width=7.0, height=0.8 + 0.22 * count,
        ),
        draw.folder,
    )  # fmt: skip


def accuracy(draw: Drawing) -> Drawn | None:
    """Accuracies of all networks."""
    table = draw.study.accuracy
    if table is None or not len(table):
        return None
    looks = dict.fromkeys(table["condition"])
    styles = {c: (COLORS[(i + 1) % len(COLORS)], "os^Dv"[i % 5]) for i, c in enumerate(looks)}
    styles[CLEAN] = ("0.25", "o")
    rows: dict[str, list[Point]] = {}
    for row in records(table):
        color, marker = styles[str(row["condition"])]
        ends = (float(row["lower"]), float(row["upper"]))
        rows.setdefault(str(row["network"]), []).append(
            Point(str(row["condition"]), float(row["accuracy"]), ends, color=color, marker=marker,
                  hollow=row["condition"] == CLEAN)
        )  # fmt: skip
    return drawn(
        "accuracy",
        "Accuracy of each network on clean images and under attack, with 95% intervals over "
        "images.",
        "; ".join(f"{name}: " + ", ".join(f"{p.label} {p.x:.2f}" for p in points)
                  for name, points in rows.items()),
        lambda: alone(lambda ax: accuracies(rows, ax), height=0.75 + 0.16 * len(rows)),
        draw.folder,
    )  # fmt: skip


def heatmaps(draw: Drawing) -> list[Drawn]:
    """The interactive panels as they stand on paper: clean × attacked, clean × clean."""
    found: list[Drawn] = []
    own = draw.study.own
    kinds = [(CLEAN, CLEAN, "heatmaps-clean", "clean × clean")]
    if own is not None:
        kinds.insert(0, (CLEAN, own, "heatmaps-attacked", "clean × attacked"))
    for x, y, name, words in kinds:
        chosen = [m for s in ("st", "at") for m in _first_seeds(usual(draw.study, s))]
        chosen = [m for m in chosen if y in draw.study.conditions(m.name)]
        if not chosen or draw.study.similarity is None:
            continue
        schemes = len({m.scheme for m in chosen})
        matrices = [draw.pairs.matrix((m.name, x), (m.name, y)) for m in chosen]

        def make(matrices: Any = matrices, chosen: Any = chosen, wide: int = schemes) -> Figure:
            return panels(matrices, [f"{m.scheme} {m.scenario}" for m in chosen], columns=wide)

        found.append(
            drawn(name, f"CKA of all layers with all layers, {words}; first seed of each.",
                  f"Heatmaps of {len(chosen)} networks, {words}.", make, draw.folder)
        )  # fmt: skip
    return found


def _first_seeds(networks: list[Network]) -> list[Network]:
    return [members[0] for members in by_scheme(networks).values()]


def _difference(found: Number, schemes: Sequence[str]) -> Point:
    ends = None if found.lower is None or found.upper is None else (found.lower, found.upper)
    place = schemes.index(found.scheme)
    single = "&" not in found.scheme and found.scheme
    return Point(
        found.scheme or "networks", found.value, ends, paper=found.paper,
        color=scheme_color(found.scheme) if single else _PAIR_COLORS[place % len(_PAIR_COLORS)],
        marker=scheme_marker(found.scheme) if single else MARKERS[place % len(MARKERS)],
    )  # fmt: skip
