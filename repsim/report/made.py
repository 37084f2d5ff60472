"""How a study was made, in words: networks, settings, versions, hardware, stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repsim.report.read import Study
from repsim.report.words import full_name, plural, seconds, size

_TOLD = ("preset", "about")  # of the settings: they stand above already


def stage_anchor(about: Mapping[str, Any], kind: str, network: str | None = None) -> str:
    """The anchor of the stage of that kind, of that network where it is given; "" for none."""
    for row in about.get("stages") or []:
        name = str(row.get("name", ""))
        if name.startswith(kind) and (network is None or row.get("network") == network):
            return f"stage-{name}"
    return ""


def made(study: Study, measure: str) -> dict[str, Any]:
    """What the page's section of that name says."""
    about = study.about
    networks = [
        {
            "name": str(row.get("name", "")),
            "words": full_name(known) if (known := study.network(str(row.get("name")))) else "",
            "source": str(row.get("source") or ""),
            "origin": str(row.get("from") or ""),
            "file": str(row.get("file") or ""),
            "sha256": str(row.get("sha256") or ""),
        }
        for row in about["networks"]
    ]
    stages = [
        {
            "name": str(row.get("name", "")),
            "status": str(row.get("status") or ""),
            "time": seconds(row.get("seconds")),
            "command": str(row.get("command") or ""),
            "output": _plain(row.get("output")),
        }
        for row in about.get("stages") or []
        if row.get("kind") != "report"  # it is what runs now
    ]
    total = sum(row.get("seconds") or 0 for row in about.get("stages") or [])
    similarity, settings = study.similarity, about.get("settings") or {}
    conditions = dict(about.get("conditions") or {})
    attack = conditions.get("attack")
    if isinstance(attack, Mapping):
        conditions["attack"] = _attack(attack)
    ready = sum(network["source"] == "checkpoints" for network in networks)
    estimate = {} if similarity is None else {
        "measure": measure,
        "test images": str(similarity.samples),
        "jackknife groups": str(len(similarity.pairs.sizes)),
        "representations": str(len(similarity.keys)),
    }  # fmt: skip
    return {
        "networks": networks,
        "stages": stages,
        "time": seconds(total),
        "ready": plural(ready, "network") + (" was" if ready == 1 else " were") if ready else "",
        "facts": [
            ("Settings", _facts(_settings(settings))),
            ("Conditions", _facts(conditions)),
            ("Similarity", list(estimate.items())),
            ("Versions", _facts(about.get("versions"))),
            ("Hardware", _facts(about.get("hardware"))),
            ("Stages ran on", _places(about.get("made_on") or [])),
        ],
    }


def _places(made_on: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Where which stages ran: device, precision and, where there are several, machine and torch."""
    found = []
    for one in made_on:
        parts = [one.get("device"), one.get("precision")]
        if len(made_on) > 1:
            hardware, versions = one.get("hardware") or {}, one.get("versions") or {}
            parts += [*hardware.values(), *(f"{key} {versions[key]}" for key in versions)]
        kinds = dict.fromkeys(str(name).partition("-")[0] for name in one.get("stages") or [])
        found.append((", ".join(kinds), ", ".join(str(part) for part in parts if part)))
    return found


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what stands elsewhere, and with words for the 0 of "as the recipe says"."""
    told = {key: one for key, one in settings.items() if key not in _TOLD}
    if "samples" in told:
        told["samples"] = told["samples"] or "as each recipe says"
    if isinstance(told.get("kinds"), list):
        told["kinds"] = [
            {key: fact for key, fact in kind.items() if fact or key != "seeds"}
            if isinstance(kind, Mapping) else kind
            for kind in told["kinds"]
        ]  # fmt: skip
    return told


def _attack(attack: Mapping[str, Any]) -> str:
    """An attack with everything that was left to its defaults, in words."""
    params = attack.get("params") or {}
    words = []
    for key, fact in params.items():
        if key == "eps" and isinstance(fact, float):
            words.append(f"eps {size(fact)}")
        elif key == "step_size" and fact is None:
            words.append("step size 2.5·eps/steps")
        elif fact is not None:
            words.append(f"{key.replace('_', ' ')} {_plain(fact)}")
    text = str(attack.get("text") or attack.get("name") or "")
    return f"{text} ({', '.join(words)})" if words else text


def _facts(plain: Any, before: str = "") -> list[tuple[str, str]]:
    """A nested mapping as flat pairs of words; what is empty is left out."""
    found: list[tuple[str, str]] = []
    for key, fact in (plain or {}).items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(fact, Mapping):
            found += _facts(fact, f"{name}: ")
        elif isinstance(fact, list) and fact and all(_named(one) for one in fact):
            found += [
                (str(one["name"]), _plain({k: v for k, v in one.items() if k != "name"}))
                for one in fact
            ]
        elif text := _plain(fact):
            found.append((name, text))
    return found


def _named(fact: Any) -> bool:
    return isinstance(fact, Mapping) and bool(fact.get("name"))


def _plain(fact: Any) -> str:
    """A value in words; what is empty in it is left out."""
    if isinstance(fact, Mapping):
        parts = {key: text for key, one in fact.items() if (text := _plain(one))}
        name = parts.pop("name", "")
        inside = ", ".join(f"{key} {text}" for key, text in parts.items())
        return f"{name} ({inside})" if name and inside else name or inside
    if isinstance(fact, list | tuple):
        between = "; " if any(isinstance(one, Mapping) for one in fact) else ", "
        return between.join(filter(None, map(_plain, fact)))
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return "" if fact is None else f"{fact:g}" if isinstance(fact, float) else str(fact)
