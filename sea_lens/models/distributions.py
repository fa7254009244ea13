"""Next-token distributions: log-probabilities in float64, a part of the logits at a time, and the one KL divergence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.models.bridge import Model, precise_dtype
from sea_lens.models.tokens import Stem

POSITIONS_AT_ONCE = 256
LOGITS_AT_ONCE = 2**24
"""Logits that are in memory together, 64 MiB in float32; those of one position may be more."""
LOGITS_ON_ACCELERATORS = 2**26
"""The same on an accelerator, 256 MiB in float32."""
VALUES_AT_ONCE = 2**24
"""Values of float64 distributions (128 MiB) that are in the memory of an accelerator together."""
VALUES_IN_CACHE = 2**20
"""Values whose float64 copies (8 MiB) a CPU sums up while they are near: a third of the time that more at once take."""


def on_cpu(model: Model) -> bool:
    """Whether a model's passes begin on the CPU."""
    return torch.device(model.cfg.device or "cpu").type == "cpu"


def logits_at_once(model: Model) -> int:
    """Positions whose logits are in memory together: more on an accelerator, where each part starts kernels anew."""
    values = LOGITS_AT_ONCE if on_cpu(model) else LOGITS_ON_ACCELERATORS
    return max(1, values // model.cfg.d_vocab)


def positions_at_once(d_vocab: int, device: torch.device | None = None) -> int:
    """Positions whose float64 distributions are worked on together; on the CPU for no device."""
    values = VALUES_IN_CACHE if device is None or device.type == "cpu" else VALUES_AT_ONCE
    return max(1, min(POSITIONS_AT_ONCE, values // d_vocab))


def log_softmax(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
    """Log-probabilities in float64, where the device has it: small divergences are differences of equal numbers."""
    return logits.to(precise_dtype(logits.device)).log_softmax(-1)


def kl(log_p: Float[Tensor, "*batch d_vocab"], log_q: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats, from log-probabilities. A token with p = 0 adds nothing, whatever q says of it.

    Example:
        >>> kl(torch.tensor([0.0, -torch.inf]), torch.tensor([0.5, 0.5]).log()).item()
        0.6931471824645996
    """
    p = log_p.exp()
    return (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1)


def log_probs_of(
    logits: Float[Tensor, "n d_vocab"] | Iterable[Float[Tensor, "part d_vocab"]],
    places: Sequence[int],
    ids: Sequence[int],
) -> Float[Tensor, " tokens"]:
    """Log-probabilities of tokens, in float64 on the CPU.

    Args:
        logits: Of some positions; or part after part of them.
        places: By token, which row of the logits predicts it.
        ids: The tokens.
    """
    where, said = (torch.tensor(each, dtype=torch.long) for each in (places, ids))
    found, start = torch.empty(len(where), dtype=torch.float64), 0
    for part in [logits] if isinstance(logits, Tensor) else logits:
        precise, inside = precise_dtype(part.device), (where >= start) & (where < start + len(part))
        rows, columns = (where[inside] - start).to(part.device), said[inside].to(part.device)
        step = positions_at_once(part.shape[1], part.device)
        norms = torch.cat([few.to(precise).logsumexp(-1) for few in torch.split(part, step)])
        found[inside] = (part[rows, columns].to(precise) - norms[rows]).double().cpu()
        start += len(part)
        del part  # it is gone before there is another
    return found


def summed(
    logits: Iterable[Float[Tensor, "part d_vocab"]],
    stems: Sequence[Stem],
    after: Sequence[int],
    along: Sequence[Sequence[int]],
) -> Float[Tensor, " completions"]:
    """Summed log-probability of every completion of some stems, in order.

    Args:
        logits: Of all positions that are read, part after part.
        stems: The stems.
        after: By stem, which of the logits are those after its prompt.
        along: By stem and row, which are those after the row's first token; those after its others follow.
    """
    places: list[int] = []
    completions = [completion for stem in stems for completion in stem.completions]
    for stem, head, starts in zip(stems, after, along, strict=True):
        for completion in stem.completions:
            places.append(head)
            if len(completion) > 1:
                start = starts[stem.row_of(completion)]
                places += range(start, start + len(completion) - 1)
    return summed_at(logits, places, completions)


def summed_at(
    logits: Iterable[Float[Tensor, "part d_vocab"]],
    places: Sequence[int],
    completions: Sequence[Sequence[int]],
) -> Float[Tensor, " completions"]:
    """The same, from which of the logits predicts each token of the completions."""
    found = log_probs_of(logits, places, list(chain.from_iterable(completions)))
    owners = torch.repeat_interleave(torch.tensor([len(completion) for completion in completions]))
    return torch.zeros(len(completions), dtype=torch.float64).index_add_(0, owners, found)
