"""What two models say next after each of some positions: their likeliest tokens together, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.models.bridge import Model, tokenizer_of
from sea_lens.models.distributions import kl, log_softmax, logits_at_once, positions_at_once
from sea_lens.models.hooks import logits_of

Reader = Callable[[Tensor], Tensor]
"""Makes logits `[n, d_vocab]` of states `[n, width]`."""


@dataclass(eq=False)
class NextTokens:
    """What an unedited and an edited model say next.

    Attributes:
        model: Whose tokens.
        rows: By position, the tokens with their probabilities under both.
        kl: By position, KL(unedited || edited) in nats; infinite where the edited model predicts NaN.
        said_unedited: By position, how probable the text's token is after those before it; NaN for the first.
        said_edited: The same under the edited model.
    """

    model: Model
    rows: list[list[tuple[int, float, float]]] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    said_unedited: list[float] = field(default_factory=list)
    said_edited: list[float] = field(default_factory=list)

    def table(self, positions: Sequence[int]) -> pd.DataFrame:
        """One row per position and token.

        Args:
            positions: Whose they are.
        """
        decode = tokenizer_of(self.model).decode
        rows = [
            (position, decode([token]), token, before, after)
            for position, found in zip(positions, self.rows, strict=True)
            for token, before, after in found
        ]
        return pd.DataFrame(rows, columns=["position", "next", "next_id", "unedited", "edited"])


def compared(
    model: Model,
    unedited: tuple[Reader, Float[Tensor, "n width"]],
    edited: tuple[Reader, Float[Tensor, "n width"]],
    *,
    k: int,
    said: Sequence[int] = (),
) -> NextTokens:
    """Compares what two models say next, a part of the positions at a time.

    Args:
        model: The model.
        unedited: What makes logits, and of what.
        edited: The same under the editor.
        k: How many of the likeliest tokens of each are kept.
        said: The text's tokens, for how probable each is after those before it.
    """
    found = NextTokens(model)
    few = positions_at_once(model.cfg.d_vocab, unedited[1].device)
    for states in zip(*(torch.split(each[1], logits_at_once(model)) for each in (unedited, edited)), strict=True):
        parts = (torch.split(read(part), few) for (read, _), part in zip((unedited, edited), states, strict=True))
        for before, after in zip(*parts, strict=True):
            _add(found, log_softmax(before), log_softmax(after), k, said)
    if said:
        found.said_unedited.insert(0, math.nan)
        found.said_edited.insert(0, math.nan)
    return found


def _add(found: NextTokens, before: Tensor, after: Tensor, k: int, said: Sequence[int]) -> None:
    start = len(found.kl)
    found.kl += kl(before, after).nan_to_num(nan=math.inf, posinf=math.inf).tolist()
    found.rows += [_likeliest(*pair, k) for pair in zip(before.exp(), after.exp(), strict=True)]
    ids = torch.tensor(said[start + 1 : start + 1 + len(before)], dtype=torch.long, device=before.device)[:, None]
    for side, kept in ((before, found.said_unedited), (after, found.said_edited)):
        kept += side[: len(ids)].gather(-1, ids)[:, 0].exp().tolist()


def _likeliest(before: Tensor, after: Tensor, k: int) -> list[tuple[int, float, float]]:
    """The k likeliest tokens of either, the likeliest under any of the two first."""
    ids = sorted({token for side in (before, after) for token in side.nan_to_num(nan=-1.0).topk(k).indices.tolist()})
    rows = list(zip(ids, before[ids].tolist(), after[ids].tolist(), strict=True))
    return sorted(rows, key=lambda row: -max(row[1], row[2] if row[2] == row[2] else 0.0))


def lens_logits(model: Model) -> Reader | None:
    """The logit lens of a model: its final norm and its unembedding, with what it does to logits. None where it has none.

    Args:
        model: A TransformerBridge.
    """
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    one = torch.linspace(-1, 1, model.cfg.d_model)[None]
    try:
        expected = logit_readout(model, one).values
    except (ValueError, NotImplementedError):  # more lies between the last block and the logits than a norm
        return None
    read = partial(_read, model)
    # TransformerLens's own also makes an entropy of each, which takes most of its time.
    return (
        read if torch.allclose(read(one), expected, rtol=1e-3, atol=1e-3) else lambda x: logit_readout(model, x).values
    )


def _read(model: Model, states: Tensor) -> Tensor:
    weight = next(iter(model.parameters()))
    norm: Callable[[Tensor], Tensor] = model.ln_final  # type: ignore[attr-defined]
    return logits_of(model, norm(states[None].to(weight.device, weight.dtype))[0])
