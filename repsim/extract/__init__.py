"""Network + images + attacks -> a store of the activations, clean and attacked."""

from repsim.extract.api import extract
from repsim.extract.report import Accuracy, ExtractReport, estimate_bytes

__all__ = ["Accuracy", "ExtractReport", "estimate_bytes", "extract"]
