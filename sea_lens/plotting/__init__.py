"""A matplotlib figure per result. Functions take the result, and axes or a figure to draw in; nothing is shown."""

from sea_lens.plotting.activations import plot_activations, plot_massive_activations
from sea_lens.plotting.analysis import plot_ablation, plot_effects, plot_interactions, plot_probes
from sea_lens.plotting.demo import plot_organism
from sea_lens.plotting.editing import (
    plot_directions,
    plot_editor,
    plot_principal_angles,
    plot_spectra,
    plot_tuning,
)
from sea_lens.plotting.evaluation import plot_comparison, plot_data_efficiency, plot_evaluation, plot_transfer
from sea_lens.plotting.features import plot_features
from sea_lens.plotting.knowledge import plot_edits
from sea_lens.plotting.massive import plot_implicit_bias, plot_interventions, plot_massive_tokens
from sea_lens.plotting.methods import plot_methods
from sea_lens.plotting.style import styled
from sea_lens.plotting.tokens import plot_tokens

__all__ = [
    "plot_ablation",
    "plot_activations",
    "plot_comparison",
    "plot_data_efficiency",
    "plot_directions",
    "plot_editor",
    "plot_edits",
    "plot_effects",
    "plot_evaluation",
    "plot_features",
    "plot_implicit_bias",
    "plot_interactions",
    "plot_interventions",
    "plot_massive_activations",
    "plot_massive_tokens",
    "plot_methods",
    "plot_organism",
    "plot_principal_angles",
    "plot_probes",
    "plot_spectra",
    "plot_tokens",
    "plot_transfer",
    "plot_tuning",
    "styled",
]
