"""Activations with a decaying spectrum, and SEA from the paper's equations: full SVDs and dense projectors, in numpy."""

import warnings

import numpy as np
import torch

from sea_lens import SEA, Activations
from sea_lens.errors import SeaLensWarning

D = 16
ROLES = ("neutral", "positive", "negative")


def sides(n: int, d: int = D, seed: int = 0) -> list[np.ndarray]:
    """Neutral, positive and negative rows with a spectrum that decays, a mean, and much in common."""
    rng = np.random.default_rng(seed)
    decay = 0.8 ** np.arange(d)
    common = rng.standard_normal((n, d)) * decay
    mean = 0.3 * rng.standard_normal(d)
    return [mean + common + rng.standard_normal((n, d)) * decay for _ in ROLES]


def activations(arrays: list[np.ndarray], layer: int = 0) -> Activations:
    roles = zip(ROLES, arrays, strict=True)
    return Activations.from_tensors(**{role: {layer: torch.tensor(array)} for role, array in roles})


def layers_of(*layers: int, n: int = 20, first_seed: int = 0, **facts) -> Activations:
    found = {layer: sides(n, seed=first_seed + layer) for layer in layers}
    return Activations.from_tensors(
        **{role: {k: torch.tensor(v[i]) for k, v in found.items()} for i, role in enumerate(ROLES)}, **facts
    )


def quiet_fit(method, given, **options):
    """A fit whose warnings are not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return method.fit(given, **({"dtype": torch.float64} if isinstance(method, SEA) else {}), **options)


def oracle_projectors(arrays, shares=(0.9, 0.9), ranks=None, spectrum="squared", center=False):
    """`P+`, `P-` and the subspaces' ranks."""
    h, n = arrays[0], len(arrays[0])
    projectors = []
    for side in (1, 2):
        g = arrays[side]
        omega = (h - h.mean(0)).T @ (g - g.mean(0)) / n if center else h.T @ g / n
        u, s, _ = np.linalg.svd(omega, full_matrices=True)
        weights = s**2 if spectrum == "squared" else s
        k = 1
        while weights[:k].sum() < shares[side - 1] * weights.sum():
            k += 1
        k = k if ranks is None else ranks[side - 1]
        projectors.append((u[:, :k] @ u[:, :k].T, k))
    (keep, k_positive), (drop, k_negative) = projectors
    return keep, np.eye(h.shape[1]) - drop, (k_positive, k_negative)


def with_norms(x, like):
    return x * np.linalg.norm(like, axis=1, keepdims=True) / np.linalg.norm(x, axis=1, keepdims=True)


def matrix(editor, layer: int = 0) -> np.ndarray:
    """What an editor adds to an activation, as a matrix."""
    return (editor[layer].left @ editor[layer].right.T).double().numpy()


def probes(d: int = D) -> np.ndarray:
    return np.random.default_rng(99).standard_normal((25, d)) * 3


def close(found, expected, tolerance=1e-8):
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def same_editors(one, other) -> bool:
    """Bit for bit, cards included."""
    return one.fingerprint == other.fingerprint and one.card == other.card
