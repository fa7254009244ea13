"""Edit a language model's activations, and see exactly what the edit did.

The examples in this package go on from these lines:

    >>> from dataclasses import dataclass
    >>> import pandas as pd
    >>> import torch
    >>> import sea_lens as sl
    >>> model, world = sl.load_organism()  # a small embedded model, and what it was taught
    >>> demonstrations = world.demonstrations()[:120].with_neutral_answers(model, max_new_tokens=1)
    >>> activations = sl.collect_activations(model, demonstrations)
    >>> editor = sl.SEA(0.5, center=True).fit(activations).first_layers(3).scaled(2.0)
    >>> fitting, questions = world.questions(world.fitting)[::12], world.questions()[::12]
"""

from importlib import import_module
from typing import Any

_HOME = {
    "ACE": "methods.ace",
    "Ablation": "analysis.layers",
    "AcT": "methods.act",
    "Activations": "models.activations",
    "AffineEdit": "editing.affine",
    "AngularEdit": "editing.angular",
    "AngularSteering": "methods.angular",
    "BrokenModelWarning": "errors",
    "Comparison": "evaluation.compare",
    "Condition": "methods.cast",
    "Conceptor": "methods.conceptors",
    "ConceptorSteering": "methods.conceptors",
    "CoordinateEdit": "editing.coordinates",
    "Damage": "models.damage",
    "DamageLimits": "models.damage_limits",
    "DamageMeter": "models.damage",
    "Demonstration": "data.items",
    "Demonstrations": "data.demonstrations",
    "DirectionalAblation": "methods.directional_ablation",
    "DiKE": "methods.dike",
    "Directions": "analysis.tokens",
    "Disentangler": "methods.disentangler",
    "DisentanglerTraining": "methods.disentangling",
    "ELU": "methods.sea.feature_space",
    "EditComparison": "evaluation.compare_edits",
    "Editor": "editing.editor",
    "EditorCard": "editing.card",
    "Effects": "analysis.effects",
    "Evaluation": "evaluation.evaluation",
    "FactEdit": "data.facts",
    "FeatureMap": "methods.sea.feature_space",
    "GaussianTransport": "methods.gaussian_transport",
    "ITI": "methods.iti",
    "Identity": "methods.sea.feature_space",
    "ImplicitBias": "analysis.implicit_bias",
    "Interventions": "evaluation.massive",
    "KeyMoments": "models.key_moments",
    "KeyedEdit": "editing.keyed",
    "KnownFact": "data.facts",
    "LEACE": "methods.leace",
    "METHODS": "methods.method",
    "MEMIT": "methods.memit",
    "MassiveTokens": "analysis.massive",
    "MeanDifference": "methods.mean_difference",
    "MethodComparison": "evaluation.method_comparison",
    "MidSteer": "methods.midsteer",
    "PCADifference": "methods.pca_difference",
    "Probes": "analysis.probes",
    "Question": "data.items",
    "Questions": "data.questions",
    "SADI": "methods.sadi",
    "SAE": "sae.sae",
    "SAEFeature": "editing.sparse",
    "SAKE": "methods.sake",
    "SAS": "methods.sas",
    "SEA": "methods.sea.sea",
    "SEAFitter": "methods.sea.streaming",
    "SeaLensWarning": "errors",
    "SetCoordinates": "editing.coordinates",
    "Site": "models.sites",
    "Spectra": "analysis.subspaces",
    "SquaredExponential": "methods.sea.feature_space",
    "Study": "evaluation.study.result",
    "Tanh": "methods.sea.feature_space",
    "TokenView": "analysis.token_view",
    "Tuning": "methods.tuning",
    "WeightEdit": "editing.weights",
    "WhenAligned": "editing.conditions",
    "ablate_layers": "analysis.layers",
    "answer_greedily": "models.answers",
    "collect_activations": "models.collect",
    "collect_fact": "methods.sake",
    "collect_key_moments": "models.key_moments",
    "collect_statistics": "methods.sea.statistics",
    "compare": "evaluation.compare",
    "compare_edits": "evaluation.compare_edits",
    "compare_methods": "evaluation.which_method",
    "data_efficiency": "evaluation.data_efficiency",
    "evaluate_bbq": "evaluation.bbq",
    "evaluate_crows_pairs": "evaluation.crows_pairs",
    "evaluate_edits": "evaluation.knowledge",
    "evaluate_knowledge": "evaluation.knowledge",
    "evaluate_lm_eval": "evaluation.lm_eval",
    "evaluate_perplexity": "evaluation.perplexity",
    "evaluate_right": "evaluation.right",
    "evaluate_stereoset": "evaluation.stereoset",
    "evaluate_truthfulqa": "evaluation.truthfulqa",
    "evaluate_winobias": "evaluation.winobias",
    "export_control_vector": "editing.control_vector",
    "fit_condition": "methods.cast",
    "fit_in_sequence": "methods.in_sequence",
    "fit_sea": "methods.sea.synonyms",
    "fitted_editor": "methods.method",
    "generate": "models.generate",
    "generate_answers": "evaluation.truthfulqa",
    "grid": "methods.grid",
    "intervene_on_massive": "evaluation.massive",
    "join_facts": "methods.sake",
    "kl_to_unedited": "models.divergence",
    "load_bias_organism": "worlds.load",
    "load_knowledge_organism": "worlds.load",
    "load_model": "models.loading",
    "load_organism": "worlds.load",
    "load_sae": "sae.load",
    "massive_activations": "analysis.massive",
    "massive_tokens": "analysis.massive",
    "measure_damage": "models.damage",
    "measure_effects": "analysis.effects",
    "measure_implicit_bias": "analysis.implicit_bias",
    "measure_interactions": "analysis.layers",
    "measure_spectra": "analysis.subspaces",
    "neutral_texts": "models.neutral",
    "prefer_right": "models.answers",
    "probe_activations": "analysis.probes",
    "random_editor_like": "editing.controls",
    "read_directions": "analysis.tokens",
    "read_facts": "data.fact_files",
    "read_features": "analysis.features",
    "read_published_editor": "methods.sea.published",
    "refit": "methods.method",
    "register_benchmark": "evaluation.benchmark",
    "register_edit": "editing.registry",
    "register_effect": "analysis.effects",
    "register_method": "methods.method",
    "register_value": "editing.registry",
    "select_layers": "analysis.selection",
    "study": "evaluation.study.study",
    "train_disentangler": "methods.disentangling",
    "transfer": "evaluation.transfer",
    "tune": "methods.tune",
    "view_tokens": "analysis.token_view",
    "write_facts": "data.fact_files",
}
"""Where each public name lives. Names are imported when they are first asked for, so that `import sea_lens` is quick."""

_REGISTERING = (
    "editing.conditions",
    "editing.controls",
    "editing.coordinates",
    "models.generate",
    "methods",
    "worlds.load",
)
_PACKAGES = (
    "analysis",
    "cli",
    "data",
    "editing",
    "evaluation",
    "methods",
    "models",
    "page",
    "plotting",
    "sae",
    "serving",
    "worlds",
)

__all__ = [*sorted(_HOME), "plotting"]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"sea_lens.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'sea_lens' has no attribute {name!r}")
    for package in _REGISTERING:  # so that what files and names stand for is known before the first is read
        import_module(f"sea_lens.{package}")
    found = getattr(import_module(f"sea_lens.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)
