"""Finding 3: adversarial training amplifies long-range similarity, and block structure vanishes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repsim.findings.alignment import TRAINED
from repsim.findings.cells import LONG_RANGE, Similarities
from repsim.findings.desk import Desk, Seeds, Sides
from repsim.findings.evidence import AT, ST, Network
from repsim.findings.finding import Finding
from repsim.findings.number import Number
from repsim.findings.verdict import OPPOSED, joint, verdict

KEY = "3"
CLAIM = (
    "Adversarial training amplifies long-range similarity between layers, and block structure "
    "vanishes."
)
LABELS = {
    "long_range": "long-range similarity (layers more than half the depth apart)",
    "block_structure": "block structure (layers alike within a run, beyond their distance)",
}
PARTS = {"long_range": "Long range amplified", "block_structure": "Block structure vanishes"}
PLAIN = "plain_contrast_st_less_at"


def far(
    desk: Desk, networks: Sequence[Network], condition: str, source: Similarities | None = None
) -> Seeds | None:
    """Long-range similarity of each network under a condition."""
    return desk.seeds(networks, Sides(LONG_RANGE, condition, condition), source)


def blocks(
    desk: Desk, networks: Sequence[Network], condition: str, source: Similarities | None = None
) -> Seeds | None:
    """Block structure of each network under a condition."""
    source = source or desk.similarity
    return Seeds.of([source.block_structure(f"{one.name}:{condition}") for one in networks])


def contrast(
    desk: Desk, networks: Sequence[Network], condition: str, source: Similarities | None = None
) -> Seeds | None:
    """The same without taking distance away."""
    source = source or desk.similarity
    return Seeds.of(
        [source.block_structure(f"{one.name}:{condition}", plain=True) for one in networks]
    )


def long_range(desk: Desk) -> Finding:
    """On clean images: long-range similarity, at less st; block structure, st less at.

    Two parts, each with a verdict of its own. Block structure has no published definition, so a
    scheme decides it only where both of ours, beyond distance and plain, have the same sign.
    """
    evidence = desk.evidence
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    left: list[tuple[str, float, float]] = []
    for scheme in evidence.schemes(ST, AT):
        groups = {name: evidence.group(scheme, name) for name in (ST, AT)}
        plain = _plain(desk, groups, scheme)
        for key, of, sign, layers in (
            ("long_range", far, 1.0, "long range"), ("block_structure", blocks, -1.0, "all pairs"),
        ):  # fmt: skip
            st, at = (of(desk, groups[name], evidence.clean) for name in (ST, AT))
            if st is None or at is None:
                continue
            order = "at - st" if sign > 0 else "st - at"
            made = desk.difference(
                [(sign, at), (-sign, st)], f"{key}_{'at_less_st' if sign > 0 else 'st_less_at'}",
                f"{LABELS[key].split(' (')[0]}, clean images, {order}", layers,
                scheme=scheme, scenario=order,
            )  # fmt: skip
            if key == "block_structure":
                left.append((scheme, st.mean.value, at.mean.value))
                if any(one.value * made.value < 0 for one in plain):
                    made = replace(made, outcome=OPPOSED)
            differences.append(made)
            for name, condition, word in (
                (ST, evidence.clean, "clean"), (AT, evidence.clean, "clean"),
                (ST, evidence.own, "attacked"), (AT, evidence.own, "attacked"),
            ):  # fmt: skip
                numbers += desk.number(
                    of(desk, groups[name], condition), key,
                    f"{LABELS[key]} of {TRAINED[name]} networks, {word} images", layers,
                    scheme=scheme, scenario=name,
                )  # fmt: skip
            controls += _controls(desk, groups, scheme, key, sign, layers)
        numbers += plain
    if not differences:
        return desk.missing(KEY, CLAIM, "an st and an at network of one scheme, of several layers")
    for key, of, layers in (
        ("long_range", far, "long range"), ("block_structure", blocks, "all pairs"),
    ):  # fmt: skip
        controls += desk.number(
            of(desk, evidence.untrained(), evidence.clean), f"{key}_untrained",
            f"{LABELS[key]} of untrained networks, clean images", layers, scenario="untrained",
        )  # fmt: skip
    notes = desk.left_out(ST, AT)
    if left:
        gone = all(at <= desk.margin for _, _, at in left)
        each = ", ".join(f"{scheme} {st:.3f} and {at:.3f}" for scheme, st, at in left)
        notes.append(
            f"Block structure of st and of at networks: {each}: it "
            f"{'vanishes' if gone else 'does not vanish'} (margin {desk.margin:g})."
        )
    judged = _judged(differences, [one for one in numbers if one.key == PLAIN])
    return desk.finding(KEY, CLAIM, numbers, controls, differences, notes, judged)


def _judged(differences: list[Number], plain: list[Number]) -> tuple[str, str]:
    """The verdict of both parts, and where the definitions of blocks have opposite signs."""
    parts = {
        name: verdict([one for one in differences if one.key.startswith(key)])
        for key, name in PARTS.items()
    }
    opposed = [one.scheme for one in differences if one.outcome == OPPOSED]
    if opposed:
        said, why = parts[PARTS["block_structure"]]
        other = ", ".join(f"{one.scheme} {one.text()}" for one in plain if one.scheme in opposed)
        parts[PARTS["block_structure"]] = (
            said,
            (f"{why}; the plain contrast, distance left in, has the opposite sign: {other}"),
        )
    return joint(parts)


def _plain(desk: Desk, groups: dict[str, list[Network]], scheme: str) -> list[Number]:
    """Contrast of a run of layers to the rest with distance left in: what the eye sees."""
    st, at = (contrast(desk, groups[name], desk.evidence.clean) for name in (ST, AT))
    if st is None or at is None:
        return []
    return desk.number(
        st.mean - at.mean, PLAIN,
        "contrast of a run of layers to the rest, their distance left in, clean images, st - at",
        "all pairs", scheme=scheme, scenario="st - at", difference=True,
    )  # fmt: skip


def _controls(
    desk: Desk, groups: dict[str, list[Network]], scheme: str, key: str, sign: float, layers: str
) -> list[Number]:
    """On noisy images, and within classes."""
    of = far if key == "long_range" else blocks
    evidence, found = desk.evidence, []
    order = "at - st" if sign > 0 else "st - at"
    for word, condition, source in (
        ("noise", evidence.noise, desk.similarity), ("within_class", evidence.clean, desk.within),
    ):  # fmt: skip
        if source is None:
            continue
        st, at = (of(desk, groups[name], condition, source) for name in (ST, AT))
        if st is not None and at is not None:
            what = "images with noise" if word == "noise" else "clean images, within classes"
            found += desk.number(
                sign * (at.mean - st.mean), f"{key}_{word}",
                f"{LABELS[key].split(' (')[0]}, {what}, {order}", layers,
                scheme=scheme, scenario=order, difference=True,
            )  # fmt: skip
    return found
