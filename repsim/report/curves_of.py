"""Figures of the findings that are curves over the layers: 1 to 5, and 7."""

from __future__ import annotations

from repsim.plot.study import Line, over_distance, scheme_marker
from repsim.report.curves import by_distance
from repsim.report.drawing import AT_COLOR, INTERVAL, ST_COLOR, Drawing, control, styled
from repsim.report.figures import Drawn, alone, drawn, words_of
from repsim.report.groups import across_schemes, by_scheme, seeds, usual
from repsim.report.read import CLEAN, NOISE
from repsim.report.words import SCHEMES, size


def standard(draw: Drawing) -> list[Drawn | None]:
    """Clean against attacked, standard training."""
    return [_clean_attacked(draw, "st", "finding-1", "Standard training")]


def adversarial(draw: Drawing) -> list[Drawn | None]:
    """Clean against attacked, adversarial training."""
    return [_clean_attacked(draw, "at", "finding-2", "Adversarial training")]


def _clean_attacked(draw: Drawing, scenario: str, name: str, title: str) -> Drawn | None:
    own = draw.study.own
    if own is None:
        return None
    networks = draw.alike(usual(draw.study, scenario), own)
    if not networks:
        return None
    lines = [
        draw.scheme(scheme, [((m.name, CLEAN), (m.name, own)) for m in members], scenario)
        for scheme, members in by_scheme(networks).items()
    ]
    noisy = [m for m in networks if NOISE in draw.study.conditions(m.name)]
    if noisy:
        curve = draw.same([((m.name, CLEAN), (m.name, NOISE)) for m in noisy])
        lines.append(control("noise of the same size", curve))
    several = any(len(members) > 1 for members in by_scheme(networks).values())
    return draw.depth(
        name, lines, networks[0],
        f"{title}: each layer on clean images against itself on attacked ones"
        f"{', mean over seeds' if several else ''}; {INTERVAL}; dashed: the control.",
        title, "CKA(clean, attacked)",
    )  # fmt: skip


def long_range(draw: Drawing) -> list[Drawn | None]:
    """Layers that are far apart."""
    lines = []
    networks = draw.alike([*usual(draw.study, "st"), *usual(draw.study, "at")], CLEAN)
    for scenario in ("st", "at"):
        chosen = [one for one in networks if one.scenario == scenario]
        for scheme, members in by_scheme(chosen).items():
            curve = by_distance(draw.pairs, [(m.name, CLEAN) for m in members])
            lines.append(styled(f"{scheme} {scenario}", curve, scheme, scenario))
    if not lines:
        return []
    every = [m for m in draw.study.networks if m.scenario == "untrained"]
    if untrained := draw.alike(every, CLEAN, networks[0]):
        curve = by_distance(draw.pairs, [(m.name, CLEAN) for m in untrained])
        lines.append(control("untrained", curve))
    return [
        drawn(
            "finding-3",
            "Two layers of one network on clean images, by their distance in depth; hollow: "
            f"standard, filled: adversarial training; {INTERVAL}. The shaded half is what "
            "long-range similarity is the mean of.",
            words_of((line.label, line.value.tolist()) for line in lines),
            lambda: alone(lambda ax: over_distance(lines, ax, label="CKA, clean × clean")),
            draw.folder,
        )
    ]


def universality(draw: Drawing) -> list[Drawn | None]:
    """Networks of different schemes, in three readings."""
    readings = [
        (CLEAN, "clean images", "clean"),
        (draw.study.own, "own attacked images", "own"),
        (draw.study.shared, "one shared attacked set", "shared"),
    ]
    return [
        _across(draw, condition, words, f"finding-4-{short}")
        for condition, words, short in readings
        if condition is not None
    ]


def _across(draw: Drawing, condition: str, words: str, name: str) -> Drawn | None:
    lines, depth = [], None
    kinds = [("st", "standard", ST_COLOR, True), ("at", "adversarial", AT_COLOR, False)]
    for scenario, word, color, hollow in kinds:
        networks = draw.alike(usual(draw.study, scenario), condition)
        pairs = across_schemes(networks)
        if not pairs:
            continue
        depth = networks[0]
        sides = [((a.name, condition), (b.name, condition)) for a, b in pairs]
        for pair in sides:
            curve = draw.same([pair])
            lines.append(Line("", curve.value, color=color, faint=True))
        curve = draw.same(sides)
        lines.append(
            Line(f"schemes, {word}", curve.value, curve.lower, curve.upper, color,
                 "o" if hollow else "s", hollow)
        )  # fmt: skip
        same = seeds(networks)
        if same:
            curve = draw.same([((a.name, condition), (b.name, condition)) for a, b in same])
            lines.append(control(f"seeds, {word}", curve, "^" if hollow else "v"))
    if depth is None:
        return None
    return draw.depth(
        name, lines, depth,
        f"Same layer of two networks of different schemes, {words}: thin, each pair; thick, "
        f"their mean; {INTERVAL}; dashed: two seeds of one scheme.",
        words[0].upper() + words[1:], "CKA between networks",
    )  # fmt: skip


def budgets(draw: Drawing) -> list[Drawn | None]:
    """Clean against attacked by the size of the training attack, a figure a scheme."""
    own = draw.study.own
    found: list[Drawn | None] = []
    if own is None:
        return []
    for scheme, members in by_scheme(
        [m for m in draw.study.networks if m.scenario == "at" and m.eps is not None]
    ).items():
        members = draw.alike(members, own)
        sizes = sorted({round(m.eps or 0, 6) for m in members})
        if len(sizes) < 2:
            continue
        lines, pixels = [], draw.pixels()
        for i, eps in enumerate(sizes):
            same = [m for m in members if abs((m.eps or 0) - eps) < 1e-5]
            curve = draw.same([((m.name, CLEAN), (m.name, own)) for m in same])
            ink = _ordered_color(i, len(sizes))
            marker = "os^Dv"[i % 5]
            lines.append(
                Line(f"trained at {size(eps, pixels=pixels)}", curve.value, curve.lower,
                     curve.upper, ink, marker)
            )  # fmt: skip
        standard = [m for m in usual(draw.study, "st") if m.scheme == scheme]
        if standard := draw.alike(standard, own, members[0]):
            curve = draw.same([((m.name, CLEAN), (m.name, own)) for m in standard])
            lines.insert(0, Line("standard", curve.value, curve.lower, curve.upper, ST_COLOR,
                                 "o", True))  # fmt: skip
        found.append(
            draw.depth(
                f"finding-5-{scheme}", lines, members[0],
                f"{scheme}: clean against attacked at one test attack, by the size of the "
                f"training attack; {INTERVAL}.",
                SCHEMES.get(scheme, scheme).capitalize(), "CKA(clean, attacked)",
            )
        )  # fmt: skip
    return found


def full_at(draw: Drawing) -> list[Drawn | None]:
    """at against full-at."""
    lines = []
    networks = draw.alike(usual(draw.study, "full-at"), CLEAN)
    if not networks:
        return []
    depth = networks[0]
    first = by_scheme(draw.alike(usual(draw.study, "at"), CLEAN, depth))
    for scheme, members in by_scheme(networks).items():
        sides = [
            ((a.name, CLEAN), (b.name, CLEAN))
            for b in members
            for a in first.get(scheme, [])
            if a.seed == b.seed
        ]
        if sides:
            lines.append(draw.scheme(scheme, sides, "full-at"))
        pairs = seeds(first.get(scheme, []))
        if sides and pairs:
            between = [((a.name, CLEAN), (b.name, CLEAN)) for a, b in pairs]
            curve = draw.same(between)
            lines.append(control(f"{scheme}, two seeds at", curve, scheme_marker(scheme)))
    if not lines:
        return []
    return [
        draw.depth(
            "finding-7", lines, depth,
            "Each layer after adversarial training of the encoder (at) against the same layer "
            f"after training on end to end (full-at), clean images; {INTERVAL}; dashed: two "
            "seeds of at, where there are two.",
            "at against full-at", "CKA(at, full-at)",
        )
    ]  # fmt: skip


def _ordered_color(i: int, count: int) -> str:
    """From viridis, dark to light, without its yellow end."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](0.08 + 0.68 * i / max(1, count - 1)))
