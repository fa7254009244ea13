"""The published procedure, as it is described and as fast as it can be written without changing what is computed.

Qiu et al., NeurIPS 2024 (arXiv 2405.09719), and the authors' code: two cross-covariances in float64, a full singular value
decomposition of each, dense projections, two dense products and a merge a token, texts one at a time with all hidden states,
answers scored one at a time. (Their code's slips, which change results, are left out.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.models.bridge import Model
from sea_lens.models.tokens import TokenizedAnswer


def leading_directions(
    neutral: Float[Tensor, "n d_model"], other: Float[Tensor, "n d_model"], explained_variance: float, center: bool
) -> Float[Tensor, "d_model k"]:
    """`U[:, :k]` of the full decomposition of the d_model x d_model cross-covariance; k from the squared singular values."""
    h, g = neutral.double(), other.double()
    if center:
        h, g = h - h.mean(0), g - g.mean(0)
    u, s, _ = torch.linalg.svd(h.T @ g / len(h))
    energies = s.square().cumsum(0)
    k = int((energies < explained_variance * energies[-1]).sum()) + 1
    leading: Tensor = u[:, :k]
    return leading


def projections(
    positive: Float[Tensor, "d_model k_positive"], negative: Float[Tensor, "d_model k_negative"]
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model d_model"]]:
    """`P+ = U+ U+^T` and `P- = I - U- U-^T`, dense, in float32 as they are applied."""
    keep, remove = (basis.float() @ basis.float().T for basis in (positive, negative))
    return keep, torch.eye(len(remove)) - remove


def fit(
    neutral: Float[Tensor, "n d_model"],
    positive: Float[Tensor, "n d_model"],
    negative: Float[Tensor, "n d_model"],
    explained_variance: float,
    center: bool = False,
) -> tuple[list[Float[Tensor, "d_model k"]], tuple[Tensor, Tensor]]:
    """Both bases, and both projections."""
    bases = [leading_directions(neutral, other, explained_variance, center) for other in (positive, negative)]
    return bases, projections(bases[0], bases[1])


def edit(h: Float[Tensor, "*batch d_model"], keep: Tensor, remove: Tensor) -> Float[Tensor, "*batch d_model"]:
    """Two dense products, and the token's own norm given back."""
    merged = h @ keep + h @ remove
    norms, theirs = (torch.linalg.vector_norm(tensor, dim=-1, keepdim=True) for tensor in (h, merged))
    restored: Tensor = merged * (norms / theirs)
    return restored


@torch.no_grad()
def collect(hf_model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> Float[Tensor, "n layers_but_last d_model"]:
    """The last token's hidden state after every block but the last (there the model returns it after the final norm)."""
    found = []
    for ids in rows:
        states = hf_model(torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False).hidden_states
        found.append(torch.stack([state[0, -1] for state in states[1:-1]]))
    return torch.stack(found)


@torch.no_grad()
def score(model: Model, texts: Sequence[tuple[str, str]]) -> list[float]:
    """The summed log-probability of each completion, one full text at a time."""
    scores = []
    for prompt, completion in texts:
        text = TokenizedAnswer.of(model, prompt, completion)
        ids = torch.tensor([text.ids])
        spoken = model(ids, use_cache=False)[0, text.answer_start - 1 : -1].float().log_softmax(-1)
        scores.append(float(spoken.gather(-1, ids[0, text.answer_start :, None]).double().sum()))
    return scores
