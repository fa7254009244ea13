"""One published method a file: settings in, editor out."""

from sea_lens.methods import (
    ace,
    act,
    angular,
    conceptors,
    directional_ablation,
    gaussian_transport,
    iti,
    leace,
    mean_difference,
    memit,
    midsteer,
    pca_difference,
    sadi,
    sake,
    sas,
    sea,
)

__all__ = [
    "ace",
    "act",
    "angular",
    "conceptors",
    "directional_ablation",
    "gaussian_transport",
    "iti",
    "leace",
    "mean_difference",
    "memit",
    "midsteer",
    "pca_difference",
    "sadi",
    "sake",
    "sas",
    "sea",
]
