"""Spectral Editing of Activations (Qiu et al., NeurIPS 2024, arXiv 2405.09719)."""

from sea_lens.methods.sea import feature_space, published, sea

__all__ = ["feature_space", "published", "sea"]
