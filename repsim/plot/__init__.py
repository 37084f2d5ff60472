"""Figures of comparison results: functions that take `ax` and return it, never show or save.

Nothing here changes matplotlib's global settings, and pyplot is used only where a caller gives no
axes (`ax=None` means pyplot's current axes, as in seaborn). The functions that compose several
axes return a `matplotlib.figure.Figure` that pyplot does not know of; `save_figure` writes it.
"""

from repsim.plot.curves import diagonal
from repsim.plot.heatmaps import difference, heatmap
from repsim.plot.layout import clean_vs_attacked, panels
from repsim.plot.save import save_figure

__all__ = ["clean_vs_attacked", "diagonal", "difference", "heatmap", "panels", "save_figure"]
