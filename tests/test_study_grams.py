"""Gram matrices that no present comparison uses are removed, and no others."""

from __future__ import annotations

import json
import os
from pathlib import Path

from study_small import carry_on, preset, ready

DAY = 24 * 3600


def grams(folder: Path) -> set[str]:
    return {path.name for path in (folder / "grams").iterdir()}


def aged(folder: Path) -> None:
    """As if a day had gone by since the last comparison."""
    for path in [*(folder / "grams").rglob("*")]:
        at = path.stat().st_mtime - DAY
        os.utime(path, (at, at))
    for kind in ("compare", "within"):
        record = folder / "stages" / f"{kind}.json"
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, "began": content["began"] - DAY}))


def test_those_of_other_settings_go(tmp_path: Path) -> None:
    folder, file = tmp_path / "study", preset(tmp_path)
    carry_on(ready(folder, file, stop_after="within"))
    first = grams(folder)
    (folder / "grams/notes").mkdir()  # not of the study
    aged(folder)
    more = ["within.samples=40"]
    assert carry_on(ready(folder, file, more, stop_after="within")) == ["within"]
    # Those of the comparison are as old as it is: it still uses them.
    assert first < grams(folder)
    assert len(grams(folder)) == 2 * len(first) + 1

    other = [*more, "compare.attack=pgd,steps=3", "evaluate.attacks=pgd,steps=3"]
    aged(folder)
    assert carry_on(ready(folder, file, other, stop_after="compare")) == ["shared", "compare"]
    assert first < grams(folder)  # `within` may still want them
    assert carry_on(ready(folder, file, other, stop_after="within")) == ["within"]
    last = grams(folder) - {"notes"}
    # Clean images and noise stay in use, attacks are others: of 3 networks × 4 conditions.
    assert len(last) == 2 * len(first)
    assert len(last & first) == 6
    assert (folder / "grams/notes").is_dir()
    aged(folder)
    assert carry_on(ready(folder, file, other, stop_after="within")) == []
    assert grams(folder) == last | {"notes"}
