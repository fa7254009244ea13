"""Edit a language model's residual stream in closed form, and see why the edit works."""

from sea_lens import plotting
from sea_lens.activations import Activations
from sea_lens.analysis.ablation import ablate_layers, measure_interactions, select_layers
from sea_lens.analysis.controls import random_editor_like
from sea_lens.analysis.directions import read_directions
from sea_lens.analysis.effects import answer_greedily, kl_to_unedited, measure_effects, prefer_truth
from sea_lens.analysis.massive import massive_activations, massive_tokens
from sea_lens.analysis.probes import probe_activations
from sea_lens.analysis.spectra import layer_signatures, measure_spectra
from sea_lens.collection import collect_activations
from sea_lens.demonstrations import Demonstration, Demonstrations
from sea_lens.editor import Editor
from sea_lens.editor_card import EditorCard
from sea_lens.errors import SeaLensWarning
from sea_lens.evaluation.bbq import evaluate_bbq
from sea_lens.evaluation.capabilities import evaluate_perplexity
from sea_lens.evaluation.crows_pairs import evaluate_crows_pairs
from sea_lens.evaluation.data_efficiency import data_efficiency
from sea_lens.evaluation.experiments import compare
from sea_lens.evaluation.generation import generate_answers
from sea_lens.evaluation.harness import evaluate_lm_eval
from sea_lens.evaluation.transfer import transfer
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa
from sea_lens.feature_maps import ELU, FeatureMap, Identity, SquaredExponential, Tanh
from sea_lens.methods.sea import fit_sea, refit_sea
from sea_lens.methods.sea_fitter import SEAFitter
from sea_lens.methods.sea_statistics import collect_statistics
from sea_lens.organism import load_bias_organism, load_organism
from sea_lens.questions import Question, Questions
from sea_lens.tuning import tune_sea

__all__ = [
    "ELU",
    "Activations",
    "Demonstration",
    "Demonstrations",
    "Editor",
    "EditorCard",
    "FeatureMap",
    "Identity",
    "Question",
    "Questions",
    "SEAFitter",
    "SeaLensWarning",
    "SquaredExponential",
    "Tanh",
    "ablate_layers",
    "answer_greedily",
    "collect_activations",
    "collect_statistics",
    "compare",
    "data_efficiency",
    "evaluate_bbq",
    "evaluate_crows_pairs",
    "evaluate_lm_eval",
    "evaluate_perplexity",
    "evaluate_truthfulqa",
    "fit_sea",
    "generate_answers",
    "kl_to_unedited",
    "layer_signatures",
    "load_bias_organism",
    "load_organism",
    "massive_activations",
    "massive_tokens",
    "measure_effects",
    "measure_interactions",
    "measure_spectra",
    "plotting",
    "prefer_truth",
    "probe_activations",
    "random_editor_like",
    "read_directions",
    "refit_sea",
    "select_layers",
    "transfer",
    "tune_sea",
]
