"""The folder of a study, read: what its stages left, each checked before anything is drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repsim.compare import AllPairs
from repsim.errors import UserError
from repsim.findings import Finding, Network, findings_from_json
from repsim.result.pairs import load_pairs

if TYPE_CHECKING:
    import pandas as pd

CLEAN, NOISE, SHARED = "clean", "noise", "shared"
COLUMNS = {
    "accuracy.csv": ("network", "condition", "accuracy", "lower", "upper", "samples"),
    "probes.csv": ("network", "layer", "train", "test", "attack", "accuracy", "lower", "upper"),
    "agreement.csv": ("a", "b", "what", "layer", "condition", "agreement", "lower", "upper"),
}


@dataclass
class Study:
    """What a study's folder holds.

    Attributes:
        folder: it.
        about: study.json: settings, versions, hardware, networks, stages, as they are there.
        networks: those that were compared, in the order of the study.
        findings: with their verdicts; none where that stage did not run.
        similarity: every layer × condition × network against every other.
        accuracy, probes, agreement: tables; None where they are not there.
        own: the condition of each network's own attacked images; None where there is none.
        shared: that of the attacked images that all networks share.
        robust: the condition in `accuracy` that robust accuracy means.
    """

    folder: Path
    about: dict[str, Any]
    networks: list[Network]
    findings: list[Finding] = field(default_factory=list)
    similarity: AllPairs | None = None
    accuracy: pd.DataFrame | None = None
    probes: pd.DataFrame | None = None
    agreement: pd.DataFrame | None = None
    own: str | None = None
    shared: str | None = None
    robust: str | None = None

    def conditions(self, network: str) -> list[str]:
        """Conditions under which a network was compared, in their order."""
        if self.similarity is None:
            return []
        return list(dict.fromkeys(c for name, c, _ in self.similarity.keys if name == network))

    def layers(self, network: str) -> list[str]:
        """Layers of a network, in execution order."""
        if self.similarity is None:
            return []
        return list(dict.fromkeys(x for name, _, x in self.similarity.keys if name == network))

    def network(self, name: str) -> Network | None:
        """The network of that name."""
        return next((one for one in self.networks if one.name == name), None)


def read_study(folder: str | Path) -> Study:
    """Read the folder that `repsim reproduce` writes.

    study.json is needed; whatever else is not there is left out of the report, which says so.

    Raises:
        UserError: no such folder, no study.json, or a file in it that is not what it should be.
    """
    folder = Path(folder)
    path = folder / "study.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: expected the folder of a study, with study.json; there is none; "
            "make one: repsim reproduce universal --preset demo"
        )
    about = _json(path)
    if not isinstance(about, dict) or not isinstance(about.get("networks"), list):
        raise UserError(f"{path}: expected a study's settings with a list of networks; write again")
    similarity = None
    if (folder / "similarity.h5").is_file():
        similarity = load_pairs(folder / "similarity.h5")
    networks = [_network(path, row) for row in about["networks"]]
    own, shared = _conditions(about, similarity)
    if similarity is not None:
        compared = {name for name, _, _ in similarity.keys}
        networks = [one for one in networks if one.name in compared]
    found = folder / "findings.json"
    accuracy = _table(folder / "accuracy.csv")
    return Study(
        folder=folder,
        about=about,
        networks=networks,
        findings=_findings(found) if found.is_file() else [],
        similarity=similarity,
        accuracy=accuracy,
        probes=_table(folder / "probes.csv"),
        agreement=_table(folder / "agreement.csv"),
        own=own,
        shared=shared,
        robust=_robust(about, accuracy, own),
    )


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by their columns' names."""
    return [{str(key): one for key, one in row.items()} for row in table.to_dict("records")]


def condition_head(table: pd.DataFrame, condition: str) -> str:
    """A condition of a table of accuracies, and of how many images: "pgd (n = 1000)"."""
    counts = sorted({int(n) for n in table.loc[table["condition"] == condition, "samples"]})
    return f"{condition} (n = {' or '.join(map(str, counts))})"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: expected JSON; it cannot be read ({error}); write again"
        ) from error


def _network(path: Path, row: Any) -> Network:
    try:
        eps = row.get("eps")
        return Network(
            str(row["name"]), str(row["scheme"]), str(row["scenario"]), int(row.get("seed") or 0),
            None if eps is None else float(eps), arch=str(row.get("arch") or ""),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: every network expects name, scheme, scenario and seed; got {row!r}"
        ) from error


def _findings(path: Path) -> list[Finding]:
    plain = _json(path)
    try:
        rows = plain["findings"] if isinstance(plain, dict) else plain
        return findings_from_json(rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: expected findings with key, claim, verdict, reason and numbers; write again"
        ) from error


def _table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    import pandas as pd

    # A layer, network or condition may be named "nan" or "none"; a number may be missing.
    words = {"network", "condition", "layer", "train", "test", "attack", "a", "b", "what"}
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=_missing_numbers(path, words))
    except ValueError as error:
        raise UserError(f"{path}: expected a table of comma-separated values; {error}") from error
    missing = [name for name in COLUMNS[path.name] if name not in table]
    if missing:
        raise UserError(
            f"{path}: expected columns {', '.join(COLUMNS[path.name])}; missing: "
            f"{', '.join(missing)}; write again"
        )
    return table.astype(dict.fromkeys(words & set(table), str))


def _missing_numbers(path: Path, words: set[str]) -> dict[str, list[str]]:
    with open(path, encoding="utf-8") as file:
        names = file.readline().strip().split(",")
    return {name: ["", "nan", "NaN"] for name in names if name not in words}


def _conditions(
    about: dict[str, Any], similarity: AllPairs | None
) -> tuple[str | None, str | None]:
    """The condition of own attacked images and that of shared ones."""
    named = about.get("conditions") or {}
    known = [] if similarity is None else list(dict.fromkeys(c for _, c, _ in similarity.keys))
    shared = named.get("shared")
    if shared not in known:
        shared = SHARED if SHARED in known else None
    own = named.get("own")
    if own not in known:
        own = next((c for c in known if c not in (CLEAN, NOISE, shared)), None)
    return own, shared


def _robust(about: dict[str, Any], accuracy: pd.DataFrame | None, own: str | None) -> str | None:
    """The condition of robust accuracy: of the attack that study.json names, else the own one."""
    if accuracy is None:
        return None
    known = [str(one) for one in dict.fromkeys(accuracy["condition"]) if one not in (CLEAN, NOISE)]
    wanted = [(about.get("conditions") or {}).get("robust"), own]
    return next((one for one in wanted if one in known), known[0] if known else None)
