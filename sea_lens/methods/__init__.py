"""One published method a file: settings in, editor out."""

from sea_lens.methods import (
    ace,
    conceptors,
    directional_ablation,
    gaussian_transport,
    iti,
    leace,
    mean_difference,
    midsteer,
    pca_difference,
    sake,
    sas,
    sea,
)

__all__ = [
    "ace",
    "conceptors",
    "directional_ablation",
    "gaussian_transport",
    "iti",
    "leace",
    "mean_difference",
    "midsteer",
    "pca_difference",
    "sake",
    "sas",
    "sea",
]
