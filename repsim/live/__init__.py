"""Networks compared as they run: no activation is written, Gram matrices are kept.

from repsim.live import compare_models
"""

from __future__ import annotations

from repsim.live.api import LiveGrams, LiveReport, compare_models, live_grams
from repsim.live.cache import GramCache
from repsim.live.plan import Plan, plan_batches

__all__ = [
    "GramCache",
    "LiveGrams",
    "LiveReport",
    "Plan",
    "compare_models",
    "live_grams",
    "plan_batches",
]
