"""Layers by name, in execution order, and their outputs.

A layer is a call of a module of the bare encoder, its output the module's output: what a functional
call makes inside a `forward` belongs to the module around it. Of a tuple, list or dict the first
tensor is the output.
"""

from repsim.hooks.capture import capture
from repsim.hooks.doctor import Checkup, Finding, examine
from repsim.hooks.modules import unwrap
from repsim.hooks.select import Selection, select_layers
from repsim.hooks.trace import Layer, head_name, trace

__all__ = [
    "Checkup",
    "Finding",
    "Layer",
    "Selection",
    "capture",
    "examine",
    "head_name",
    "select_layers",
    "trace",
    "unwrap",
]
