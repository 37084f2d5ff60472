"""The probes' curves: a figure a scheme and scenario, transfer and adaptive never alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from repsim.plot.labels import LABEL_SIZE, TICK_SIZE
from repsim.report.figures import Drawn, alone, drawn
from repsim.report.groups import by_scheme, usual
from repsim.report.read import Study, records
from repsim.report.words import full_name


def probe_figures(study: Study, folder: Path) -> list[Drawn]:
    """Accuracy of linear probes by layer, the first seed of each recipe; none without probes."""
    table = study.probes
    if table is None or not len(table):
        return []
    from repsim.plot.probes import probe_curves

    found = []
    networks = [
        members[0]
        for scenario in ("st", "at", "full-at")
        for members in by_scheme(usual(study, scenario)).values()
    ]
    for network in sorted(networks, key=lambda one: [m.scheme for m in networks].index(one.scheme)):
        rows = table[table["network"] == network.name]
        if not len(rows):
            continue
        ends = {
            f"{row['test']}{'' if row['attack'] == 'none' else ', ' + row['attack']}":
                f"{row['accuracy']:.2f}"
            for row in records(rows)
        }  # fmt: skip

        def draw(ax: Any, rows: Any = rows, title: str = network.name) -> None:
            probe_curves(rows, ax).set_title(title, fontsize=LABEL_SIZE, pad=4)
            ax.legend(
                fontsize=TICK_SIZE, frameon=False, handlelength=3.2, ncols=2, columnspacing=1.2,
                loc="upper center", bbox_to_anchor=(0.45, -0.4), borderaxespad=0,
            )  # fmt: skip

        found.append(
            drawn(
                f"probes-{network.name}",
                f"{network.name}: {full_name(network)}.",
                "Accuracy of probes at the last layer: "
                + "; ".join(f"{what} {value}" for what, value in ends.items()),
                _figure(draw),
                folder,
            )
        )  # fmt: skip
    return found


def _figure(draw: Callable[[Any], None]) -> Callable[[], Figure]:
    return lambda: alone(draw, height=2.8)
