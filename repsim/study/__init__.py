"""A whole study by one command: stages that are kept by the hash of what they depend on.

from repsim.study import reproduce
"""

from __future__ import annotations

from repsim.study.api import reproduce
from repsim.study.command import Wish
from repsim.study.networks import StudyNetwork
from repsim.study.settings import PRESETS, Settings, load_preset
from repsim.study.study import Machine, Study

__all__ = [
    "PRESETS",
    "Machine",
    "Settings",
    "Study",
    "StudyNetwork",
    "Wish",
    "load_preset",
    "reproduce",
]
