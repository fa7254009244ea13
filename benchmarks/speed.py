"""How much faster than the published procedure: `python benchmarks/speed.py`. Ratios of times taken side by side in one run.

Published: two d x d cross-covariances, a full SVD of each, dense projections, and two dense matrix products a token.
Here: a QR factorisation of each side, an n x n SVD, and a low-rank edit. Both are fitted on the same random activations with
a decaying spectrum and give the same edit, which is checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pandas as pd
import torch

from sea_lens import Activations, fit_sea
from sea_lens.subspaces import rank_explaining

EXPLAINED_VARIANCE = 0.998


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


def sides(n: int, d: int) -> list[torch.Tensor]:
    """Neutral, positive and negative activations that share most of their spectrum and a mean."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1) ** -0.5
    common = torch.randn(n, d, generator=generator) * scale
    return [common + 0.5 * torch.randn(n, d, generator=generator) * scale + scale for _ in range(3)]


def published_projections(neutral: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> list[torch.Tensor]:
    """`P+` and `P-` as dense matrices, by full SVDs (in float64, as `fit_sea` does)."""
    projections = []
    for other, keep in ((positive, True), (negative, False)):
        u, s, _ = torch.linalg.svd(neutral.double().T @ other.double() / len(neutral))
        leading = u[:, : rank_explaining(s, EXPLAINED_VARIANCE)]
        projections.append(leading @ leading.T if keep else torch.eye(len(u), dtype=u.dtype) - leading @ leading.T)
    return projections


def published_edit(h: torch.Tensor, keep: torch.Tensor, remove: torch.Tensor) -> torch.Tensor:
    """Two dense products and the norm, per token."""
    merged = h @ keep + h @ remove
    return merged / merged.norm(dim=-1, keepdim=True) * h.norm(dim=-1, keepdim=True)


def compare(n: int, d: int, tokens: int = 256) -> dict[str, float]:
    """One size: both fits, both edits."""
    neutral, positive, negative = sides(n, d)
    activations = Activations.from_tensors(neutral={0: neutral}, positive={0: positive}, negative={0: negative})
    editor = fit_sea(activations, EXPLAINED_VARIANCE)
    keep, remove = (projection.float() for projection in published_projections(neutral, positive, negative))
    h = torch.randn(tokens, d, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(editor[0](h), published_edit(h, keep, remove), rtol=1e-3, atol=1e-3)
    fit_published = seconds(lambda: published_projections(neutral, positive, negative), 1)
    fit_ours = seconds(lambda: fit_sea(activations, EXPLAINED_VARIANCE), 3)
    edit_published = seconds(lambda: published_edit(h, keep, remove), 20)
    edit_ours = seconds(lambda: editor[0](h), 20)
    return {
        "n": n,
        "d_model": d,
        "rank": editor[0].rank,
        "fit: published / ours": fit_published / fit_ours,
        "edit: published / ours": edit_published / edit_ours,
        "size: published / ours": 2 * d * d / (editor[0].rank * (d + 1)),
    }


if __name__ == "__main__":
    rows = [compare(n, d) for n, d in ((100, 1024), (500, 1024), (500, 2048), (100, 4096))]
    print(pd.DataFrame(rows).round(1).to_string(index=False))
