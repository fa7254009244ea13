"""One matplotlib figure for each result. Figures are returned, never shown."""

from sea_lens.plotting.editors import plot_editor, plot_organism
from sea_lens.plotting.tuning import plot_tuning

__all__ = ["plot_editor", "plot_organism", "plot_tuning"]
