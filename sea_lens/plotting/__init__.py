"""One matplotlib figure for each result. Figures are returned, never shown."""

from sea_lens.plotting.editors import plot_editor, plot_organism
from sea_lens.plotting.probes import plot_activations, plot_probes
from sea_lens.plotting.tuning import plot_tuning

__all__ = ["plot_activations", "plot_editor", "plot_organism", "plot_probes", "plot_tuning"]
