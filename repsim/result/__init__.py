"""Results of comparisons: as files, and the difference of two."""

from repsim.result.difference import difference
from repsim.result.files import SCHEMA, WORDS, load_result, save_result, to_csv

__all__ = ["SCHEMA", "WORDS", "difference", "load_result", "save_result", "to_csv"]
