#!/bin/sh
# The study's small preset on CIFAR-10; its report, tables and figures come beside this file.
#   REPSIM_DATA=FOLDER_WITH_CIFAR10 sh analyses/universal/run.sh [WORK [MORE OPTIONS]]
# Networks that checkpoints/ has are taken from there; what is missing is trained. WORK keeps
# everything, so the same command goes on where it was stopped. A further folder with trained
# networks: --checkpoints FOLDER --checkpoints checkpoints.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
work=${1:-universal-small}
[ $# -eq 0 ] || shift
${REPSIM:-repsim} reproduce universal --preset small --out "$work" "$@"

# What is small enough to be kept; similarity.h5 and within.h5 are made again in minutes.
for name in study.json findings.json accuracy.csv probes.csv agreement.csv predictions.csv \
    probe_predictions.csv report.html summary.md; do
    cp "$work/$name" "$here/$name"
done
for name in figures tables; do
    rm -rf "${here:?}/$name"
    cp -R "$work/$name" "$here/$name"
done
large=$(find "$here" -type f -size +5000k)
[ -z "$large" ] || { echo "over 5 MB: $large" >&2; exit 1; }
