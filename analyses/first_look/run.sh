#!/usr/bin/env bash
# Clean against attacked representations of the two CIFAR-10 checkpoints: numbers and a figure.
#   REPSIM_DATA=FOLDER_WITH_CIFAR10 bash analyses/first_look/run.sh
# Stores (1 GB) go to a temporary folder, numbers and the figure beside this file.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$here/../.."
repsim="${REPSIM:-$root/.venv/bin/repsim}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

for name in st at; do
    model="$root/checkpoints/cifar10-resnet20s2-$name.pt"
    "$repsim" evaluate --model "$model" --samples 10000 --attack pgd --attack fgsm --attack noise \
        --attack pgd,norm=l2,eps=0.5,as=pgd-l2 --json "$here/$name-accuracy.json"
    "$repsim" extract --model "$model" --attack pgd --out "$work/$name.h5"
    "$repsim" cka "$work/$name.h5" --pair clean,adv --out "$work/$name-adv.h5" --json "$here/$name-cka.json"
    "$repsim" cka "$work/$name.h5" --pair clean,noise --out "$work/$name-noise.h5"
done
for condition in clean adv noise; do
    "$repsim" cka "$work/st.h5" "$work/at.h5" --pair "st:$condition,at:$condition" \
        --out "$work/across-$condition.h5" --json "$here/across-$condition.json"
done
"$repsim" plot "$work"/{st,at}-{adv,noise}.h5 --kind overview \
    --title standard --title "adversarially trained" --out "$here/figure.png"
