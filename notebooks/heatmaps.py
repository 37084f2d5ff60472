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
# # Layerwise heatmaps of your own model
#
# CKA of every layer on clean images with every layer on attacked ones, beside the control: noise of
# the attack's size. Put your own checkpoint in `path` (a foreign state dict: `load_model(path,
# arch=..., mean=..., std=...)`). It needs CIFAR-10 (in `$REPSIM_DATA`, or it is downloaded); with
# `REPSIM_SMALL=1` it takes a network for digits.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

from repsim.attacks import parse_attacks
from repsim.checkpoint import load_model
from repsim.data import default_eps, draw, load_data
from repsim.live import compare_models
from repsim.plot import diagonal, heatmap

SMALL = bool(os.environ.get("REPSIM_SMALL"))
here = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "checkpoints").is_dir())
figures = Path(os.environ.get("REPSIM_FIGURES", "."))
name = "digits-resnet20-st" if SMALL else "cifar10-10k-sl-st"
path = here / "checkpoints" / f"{name}.pt"

# %% [markdown]
# ## One pass over the images
#
# The network is attacked at full strength and runs once on clean, noisy and attacked images; no
# activation is written.

# %%
model = load_model(path)
data = draw(load_data(model.data, "test", download=True), 96 if SMALL else 512)
attacks = parse_attacks("pgd,steps=5" if SMALL else "pgd", eps=default_eps(data.name))
live = compare_models([model], data, [attacks], layers="blocks")
for condition in ("clean", "noise", "pgd"):
    right, seen = live.accuracy((model.name, condition))
    print(f"{condition}: {right / seen:.1%} of {seen} images are classified correctly")

# %% [markdown]
# ## Every layer against every layer

# %%
pairs = {y: live.everything.matrix("clean", y) for y in ("clean", "noise", "pgd")}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="compressed")
for ax, (condition, result) in zip(axes, pairs.items(), strict=True):
    heatmap(result, ax)
    ax.set_title(f"clean, {condition}")
fig.savefig(figures / "heatmaps.png", dpi=150)

# %% [markdown]
# ## The same layer, with intervals
#
# 95% intervals by a jackknife over groups of images. The control says what noise alone would do.

# %%
fig, ax = plt.subplots(figsize=(6, 3.2), layout="compressed")
diagonal([pairs["pgd"], pairs["noise"]], ax=ax)
fig.savefig(figures / "same-layer.png", dpi=150)
for condition in ("noise", "pgd"):
    found = live.everything.alignment("clean", condition)
    low, high = found["alignment_last_third_ci"]
    print(f"{condition}, last third: {found['alignment_last_third']:.3f} [{low:.3f}, {high:.3f}]")
