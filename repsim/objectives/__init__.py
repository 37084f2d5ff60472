"""Training objectives: functions (model, images, labels, attack) -> loss or (loss, numbers)."""

from repsim.objectives.supervised import supervised

OBJECTIVES = {"sl": supervised}

__all__ = ["OBJECTIVES", "supervised"]
