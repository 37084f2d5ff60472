"""Network + images + attacks -> a store of the activations, clean and attacked."""

from repsim.extract.api import extract
from repsim.extract.pack import pack
from repsim.extract.ranks import Ranks, join
from repsim.extract.report import Accuracy, ExtractReport, estimate_bytes

__all__ = ["Accuracy", "ExtractReport", "Ranks", "estimate_bytes", "extract", "join", "pack"]
