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
# # Layers of different learning schemes, compared as the networks run
#
# Three questions: are adversarially trained networks of different schemes alike, layer by layer,
# and how sure is that? Does minibatch CKA depend on the batch? What do images look like that a
# network cannot tell apart?
#
# It needs CIFAR-10 (in `$REPSIM_DATA`, or let `load_data` download it). With `REPSIM_SMALL=1` it
# runs on digits and two networks that it trains in seconds.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from repsim.attacks import parse_attacks
from repsim.checkpoint import load_model
from repsim.data import default_eps, draw, load_data, to_float
from repsim.inversion import invert
from repsim.live import GramCache, compare_models
from repsim.plot.sides import sides_map
from repsim.similarity import cka_pairs
from repsim.similarity.grams import batch_of

SMALL = bool(os.environ.get("REPSIM_SMALL"))
folder = Path(tempfile.mkdtemp())
figures = Path(os.environ.get("REPSIM_FIGURES", "."))

# %%
if SMALL:
    from repsim.train import plan, train

    few = draw(load_data("digits", "train"), 320)
    for scenario in ("st", "at"):
        made = plan("digits", "sl", scenario, epochs=2, batch_size=64)
        train(few, "resnet8", folder / f"sl-{scenario}.pt", made)
    paths = [folder / "sl-st.pt", folder / "sl-at.pt"]
    data = draw(load_data("digits", "test"), 96)
else:
    here = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "checkpoints").is_dir())
    paths = [
        here / "checkpoints" / f"cifar10-10k-{scheme}-{scenario}.pt"
        for scenario in ("st", "at")
        for scheme in ("sl", "scl", "cl")
    ]
    data = draw(load_data("cifar10", "test", download=True), 512)
networks = [load_model(path) for path in paths]
[network.name for network in networks]

# %% [markdown]
# ## One pass: all layers × conditions × networks
#
# Each network is attacked by itself (PGD at full strength) and runs once on clean, on noisy and on
# attacked images. No activation is written; the Gram matrices are kept, so the next cells cost no
# forward pass.

# %%
attacks = [parse_attacks("pgd,steps=10", eps=default_eps(data.name)) for _ in networks]
live = compare_models(networks, data, attacks, cache=GramCache(folder / "grams"))
print(f"{len(live.everything.keys)} layers in all, {live.estimator} CKA of {len(data)} images")

# %%
fig, ax = plt.subplots(figsize=(9, 8), layout="compressed")
sides_map(live.matrix(), ax)
fig.savefig(figures / "everything.png", dpi=150)
# %% [markdown]
# ## Across schemes, with intervals
#
# The same layer of two networks, each on its own attacked images; 95% intervals by a jackknife
# over groups of images. Beside it the half width of the interval of every cell.

# %%
names = [network.name for network in networks]
first, second = names[-2:] if not SMALL else names
pair = live.everything.matrix((first, "pgd"), (second, "pgd"))
half = (pair["upper"] - pair["lower"]) / 2
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="compressed")
sides_map(pair, left, title=f"{first}, {second}: attacked")
image = right.imshow(half, origin="lower", cmap="viridis")
right.set_title("half width of the 95% interval", fontsize=8)
fig.colorbar(image, ax=right)
fig.savefig(figures / "across-schemes.png", dpi=150)
for i, one in enumerate(names):
    for other in names[i + 1 :]:
        found = live.everything.alignment((one, "pgd"), (other, "pgd"))
        low, high = found["alignment_mean_ci"]
        print(f"{one} with {other}: {found['alignment_mean']:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# ## Does the batch matter?
#
# Minibatch CKA averages the debiased HSIC of batches. It should not depend on their size; the
# *biased* estimator does, badly. Both from the same Gram matrices.

# %%
sizes = [size for size in (8, 16, 32, 64, 128, 256) if 2 * size <= len(data)]
layers = [r for r in live.representations if r.model == names[0] and r.condition != "noise"]
count = len(layers) // 2
diagonal = (np.arange(count), np.arange(count, 2 * count))
whole = cka_pairs(layers).value[diagonal].mean()
minibatch = [
    cka_pairs(layers, estimator="minibatch", batch_size=size).value[diagonal].mean()
    for size in sizes
]
biased = [
    np.mean(
        [
            cka_pairs(
                [batch_of(r, start, start + size) for r in layers], estimator="biased", groups=1
            )
            .value[diagonal]
            .mean()
            for start in range(0, len(data) - size + 1, size)
        ]
    )
    for size in sizes
]
fig, ax = plt.subplots(figsize=(4.5, 3), layout="compressed")
ax.axhline(whole, color="0.6", label=f"debiased, all {len(data)} images")
ax.plot(sizes, minibatch, "o-", label="minibatch (debiased)")
ax.plot(sizes, biased, "s--", label="mean of the batches' biased values")
ax.set(xscale="log", xlabel="batch", ylabel="CKA(clean, attacked), mean of layers", ylim=(0, 1.02))
ax.set_xticks(sizes, labels=sizes)
ax.legend(frameon=False, fontsize=8)
ax.set_title(names[0], fontsize=8)
fig.savefig(figures / "batch-size.png", dpi=150)
# %% [markdown]
# ## What a network cannot tell apart
#
# From noise, images are sought that a network maps to the representation of given ones. What they
# have in common with them is what the network sees.

# %%
few = to_float(data.images[:6])
shown = {"image": few}
for network in (networks[0], networks[-1]):
    record = {}
    found = invert(network.model, few, steps=10 if SMALL else 500, record=record)
    shown[network.name] = found
    print(f"{network.name}: relative distance {float(record['distance'].median()):.3f}")
fig, axes = plt.subplots(len(shown), len(few), figsize=(6, 3), layout="compressed")
for row, (name, images) in zip(axes, shown.items(), strict=True):
    row[0].set_ylabel(name, rotation=0, ha="right", fontsize=7)
    for ax, image in zip(row, images, strict=True):
        ax.imshow(image.permute(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
fig.savefig(figures / "inversions.png", dpi=150)
