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
# The figure of the page: the same at half the size and in 128 colours.
python - "$work/grey.png" "$here/figure.png" <<'END'
import sys
from PIL import Image
figure = Image.open(sys.argv[1]).convert("RGB")
figure.resize((figure.width // 2, figure.height // 2)).quantize(128).save(sys.argv[2], optimize=True)
END
