"""One condition against another, of one store or of two, beside what both must be read against.

    repsim cka --pair clean,adv

All layers of both sides, and of the controls of their attacks, go through one comparison.
"""

from repsim.pair.images import Images, Side, influence_table
from repsim.pair.sides import PairReport, compare_sides
from repsim.pair.stores import compare_pair

__all__ = ["Images", "PairReport", "Side", "compare_pair", "compare_sides", "influence_table"]
