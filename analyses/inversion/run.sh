#!/bin/sh
# Inversions of four CIFAR-10 networks from three kinds of start: the JSON files beside this one.
# REPSIM_DATA names the folder that holds cifar10.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
checkpoints=$here/../../checkpoints
work=${1:-$(mktemp -d)}
for start in noise image grey; do
    repsim invert \
        --model "$checkpoints/cifar10-resnet20s2-st.pt" --model "$checkpoints/cifar10-10k-sl-st.pt" \
        --model "$checkpoints/cifar10-resnet20s2-at.pt" --model "$checkpoints/cifar10-10k-sl-at.pt" \
        --data cifar10 --start $start --budget laptop --overwrite \
        --out "$work/$start.h5" --json "$here/$start.json"
done
