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
# # Probes, and attacks on representations
#
# Where in a network can the class still be read off under attack? A linear probe on every layer,
# trained on clean images, is tested on images attacked through the whole network (transfer) and on
# images attacked against that very probe (adaptive). Then the attack aims at representations
# themselves, without any labels.
#
# It needs CIFAR-10 (in `$REPSIM_DATA`, or it is downloaded); with `REPSIM_SMALL=1` it takes digits.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

from repsim.attacks import parse_attacks
from repsim.checkpoint import load_model
from repsim.data import default_eps, draw, load_data
from repsim.live import compare_models
from repsim.plot import diagonal
from repsim.plot.probes import probe_curves
from repsim.probe import agreement, probe_live

SMALL = bool(os.environ.get("REPSIM_SMALL"))
here = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "checkpoints").is_dir())
figures = Path(os.environ.get("REPSIM_FIGURES", "."))
stem = "digits-resnet20" if SMALL else "cifar10-10k-sl"
networks = [load_model(here / "checkpoints" / f"{stem}-{scenario}.pt") for scenario in ("st", "at")]
name = networks[0].data
train = draw(load_data(name, "train", download=True), 300 if SMALL else 2000)
test = draw(load_data(name, "test", download=True), 60 if SMALL else 300)
pgd = parse_attacks("pgd,steps=3" if SMALL else "pgd", eps=default_eps(name))

# %% [markdown]
# ## A probe on every layer

# %%
layers = ["relu", "layer*.2", "avgpool"]
reports = [
    probe_live(network, train, test, layers=layers, attacks=pgd, adaptive=True)
    for network in networks
]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="compressed")
for ax, network, report in zip(axes, networks, reports, strict=True):
    probe_curves(report.table, ax)
    ax.set_title(network.name, fontsize=9)
fig.savefig(figures / "probes.png", dpi=150)
reports[1].table[["layer", "test", "attack", "accuracy", "lower", "upper"]].round(3)

# %% [markdown]
# ## Do the probes of two networks say the same?
#
# Agreement of predictions, and Cohen's kappa, which takes out what two guesses would share.

# %%
agreement(*reports)[["layer_a", "test", "attack", "agreement", "kappa"]].round(3)

# %% [markdown]
# ## Attacks on representations
#
# `feature` pushes the pooled features away from their clean value; `pgd` goes through the labels.
# How much of each layer do they move?

# %%
steps = 3 if SMALL else 20
specs = pgd + parse_attacks(f"feature,layer=avgpool,steps={steps}", eps=default_eps(name))
live = compare_models(networks, test, [specs] * 2, layers=layers)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="compressed")
for ax, network in zip(axes, networks, strict=True):
    clean = (network.name, "clean")
    conditions = ("noise", "pgd", "feature")
    diagonal([live.everything.matrix(clean, (network.name, one)) for one in conditions], ax=ax)
    ax.set_title(network.name, fontsize=9)
fig.savefig(figures / "representation-attacks.png", dpi=150)
