"""One matplotlib figure for each result. Figures are returned, never shown."""

from sea_lens.plotting.ablation import plot_ablation, plot_effects, plot_interactions
from sea_lens.plotting.editors import plot_editor, plot_organism
from sea_lens.plotting.evaluation import plot_comparison, plot_data_efficiency, plot_evaluation, plot_transfer
from sea_lens.plotting.probes import plot_activations, plot_probes
from sea_lens.plotting.spectra import plot_directions, plot_massive_activations, plot_principal_angles, plot_spectra
from sea_lens.plotting.tuning import plot_tuning

__all__ = [
    "plot_ablation",
    "plot_activations",
    "plot_comparison",
    "plot_data_efficiency",
    "plot_directions",
    "plot_editor",
    "plot_effects",
    "plot_evaluation",
    "plot_interactions",
    "plot_massive_activations",
    "plot_organism",
    "plot_principal_angles",
    "plot_probes",
    "plot_spectra",
    "plot_transfer",
    "plot_tuning",
]
