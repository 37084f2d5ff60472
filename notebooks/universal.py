# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The universal study, read from its results
#
# `repsim reproduce universal` writes findings, tables and matrices to a folder. This notebook reads
# them; put your own folder in `study`. As it stands it reads the small study on CIFAR-10 that is in
# the repository. The same things, and more, are in the study's `report.html`. Commands that make a
# number again are run in the folder of the study, where its matrices are.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from repsim.findings import findings_from_json
from repsim.plot.points import Point, differences
from repsim.plot.study import scheme_color

here = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "analyses").is_dir())
study = here / "analyses" / "universal"
figures = Path(os.environ.get("REPSIM_FIGURES", "."))
found = findings_from_json((study / "findings.json").read_text())
pd.DataFrame({"claim": f.claim, "verdict": f.verdict, "why": f.reason} for f in found)

# %% [markdown]
# ## What decides
#
# A claim holds where every deciding difference excludes 0 in the claimed direction and is larger
# than the spread of seeds. Diamonds are the paper's own values.

# %%
markers = {"sl & scl": "s", "sl & cl": "^", "scl & cl": "v"}
groups = {}
for finding in found:
    questions = groups.setdefault(f"{finding.key}. {finding.verdict}", {})
    for number in finding.differences:
        interval = None if number.lower is None else (number.lower, number.upper)
        questions.setdefault(number.label, []).append(
            Point(number.scheme or "", number.value, interval, paper=number.paper,
                  color=scheme_color(number.scheme or ""), marker=markers.get(number.scheme, "o"))
        )  # fmt: skip
groups = {head: questions for head, questions in groups.items() if questions}
rows = sum(1.3 + 1.15 * len(questions) for questions in groups.values())
fig, ax = plt.subplots(figsize=(7, 0.8 + 0.22 * rows), layout="compressed")
differences(groups, ax, margin=found[0].margin, label="difference")
fig.savefig(figures / "decisions.png", dpi=150)

# %% [markdown]
# ## One number, and how to make it again

# %%
number = next(one for finding in found for one in finding.differences)
print(f"{number.label} ({number.scheme}): {number.text()}")
print(f"spread of seeds {number.spread}; the paper {number.paper} {number.agrees or ''}")
print(number.command)

# %% [markdown]
# ## Robust accuracy of the networks

# %%
accuracy = pd.read_csv(study / "accuracy.csv")
accuracy.pivot_table("accuracy", "network", "condition").round(3)
