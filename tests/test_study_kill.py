"""A study that is killed in earnest, and the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from study_small import carry_on, preset, ready

from repsim.checkpoint import load_model
from repsim.result.pairs import load_pairs
from repsim.study.study import read_study


def test_killed_and_continued_by_the_command(tmp_path: Path) -> None:
    """SIGKILL in the middle of the study, several processes; the same command ends it the same."""
    folder, file, whole = tmp_path / "study", preset(tmp_path), tmp_path / "whole"
    carry_on(ready(whole, file, stop_after="compare"))
    command = [
        sys.executable, "-m", "repsim", "reproduce", "universal", "--preset", str(file),
        "--out", str(folder), "--jobs", "2", "--device", "cpu", "--stop-after", "compare",
        "--checkpoints", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (folder / "stages/train-sl-st-0.json").exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    for path in (folder / "checkpoints").glob("[!.]*.pt"):
        load_model(path)  # whole
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train-sl-st-0:" not in done.stderr
    assert "compare:" in done.stderr
    ours, theirs = (load_pairs(f / "similarity.h5") for f in (folder, whole))
    assert ours.keys == theirs.keys
    np.testing.assert_array_equal(ours.pairs.value, theirs.pairs.value)
    assert np.isfinite(read_study(folder)["seconds"])
