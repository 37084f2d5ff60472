"""Auto-PGD: the authors' trajectories, the modes, closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from test_attacks import (
    CLASSES,
    ConvNet,
    Counter,
    Root,
    assert_same,
    batch_norm_net,
    images,
    labels,
    linear,
    losses,
    state,
)
from torch import Tensor, nn

from repsim.attacks.apgd import (
    Climb,
    Targeted,
    apgd,
    auto_ascend,
    checkpoints,
    radii,
    start_of_run,
)
from repsim.attacks.objective import Classify
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData
from repsim.errors import UserError
from repsim.losses import LOSSES, margin
from repsim.runtime import as_pixels if False else None
