"""Edit a language model's residual stream in closed form, and see why the edit works."""

from sea_lens import plotting
from sea_lens.analysis.effects import measure_effects
from sea_lens.analysis.layers import ablate_layers, measure_interactions, select_layers
from sea_lens.analysis.massive import massive_activations, massive_tokens
from sea_lens.analysis.probes import probe_activations
from sea_lens.analysis.subspaces import layer_signatures, measure_spectra
from sea_lens.analysis.tokens import read_directions
from sea_lens.data.demonstrations import Demonstration, Demonstrations
from sea_lens.data.questions import Question, Questions
from sea_lens.editing.card import EditorCard
from sea_lens.editing.controls import random_editor_like
from sea_lens.editing.editor import Editor
from sea_lens.errors import SeaLensWarning
from sea_lens.evaluation.bbq import evaluate_bbq
from sea_lens.evaluation.compare import compare
from sea_lens.evaluation.crows_pairs import evaluate_crows_pairs
from sea_lens.evaluation.data_efficiency import data_efficiency
from sea_lens.evaluation.lm_eval import evaluate_lm_eval
from sea_lens.evaluation.perplexity import evaluate_perplexity
from sea_lens.evaluation.transfer import transfer
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa, generate_answers
from sea_lens.methods.sea.feature_space import ELU, FeatureMap, Identity, SquaredExponential, Tanh
from sea_lens.methods.sea.sea import fit_sea, refit_sea
from sea_lens.methods.sea.statistics import collect_statistics
from sea_lens.methods.sea.streaming import SEAFitter
from sea_lens.methods.tune import tune_sea
from sea_lens.models.activations import Activations
from sea_lens.models.answers import answer_greedily, prefer_right
from sea_lens.models.collect import collect_activations
from sea_lens.models.divergence import kl_to_unedited
from sea_lens.worlds.load import load_bias_organism, load_organism

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
    "prefer_right",
    "probe_activations",
    "random_editor_like",
    "read_directions",
    "refit_sea",
    "select_layers",
    "transfer",
    "tune_sea",
]
