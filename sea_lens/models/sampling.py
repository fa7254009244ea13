"""Draws of tokens that depend on a seed alone: on no other row of a batch, and on no generator that others use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError
from sea_lens.wording import setting


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 for the likeliest token; above, tokens are drawn.
        top_p: Draws among the likeliest tokens whose probabilities sum to this.
        top_k: Draws among this many of the likeliest tokens; 0 for all.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"A temperature is 0 or above, and {self.temperature} was given.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"{setting('top_p')} is above 0 and at most 1, and {self.top_p} was given.")
        if self.top_k < 0 or not 0 <= self.seed < 2**63:
            raise InputError(
                f"{setting('top_k')} and {setting('seed')} are 0 or above, and {self.top_k} and {self.seed} were given."
            )
        if not self.temperature and (self.top_p < 1 or self.top_k):
            raise InputError(
                f"{setting('top_p')} and {setting('top_k')} are for draws, which a temperature of 0 makes none of. Give "
                f"a {setting('temperature')}."
            )

    def warpers(self) -> list[Any]:
        """What changes scores before a draw, one after the other; nothing at temperature 0."""
        if not self.temperature:
            return []
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper  # late: it takes a second

        found: list[Any] = [TemperatureLogitsWarper(float(self.temperature))]
        found += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        return [*found, TopPLogitsWarper(float(self.top_p))] if self.top_p < 1 else found

    def processors(self, rows: Sequence[int]) -> list[Any]:
        """What Hugging Face's greedy generation is given to draw tokens with; nothing at temperature 0.

        Args:
            rows: By row of the batch, its number in the whole list. A row draws with the seed plus its number.
        """
        if not self.temperature:
            return []
        noise = _Noise(self.seed)
        return [*self.warpers(), lambda ids, scores: noise.added(scores, rows)]


class Choice:
    """Chooses tokens of rows that come and go: each draws as it would alone."""

    def __init__(self, sampling: Sampling) -> None:
        """Of a way of choosing."""
        self._warpers = sampling.warpers()
        self._noise = _Noise(sampling.seed) if sampling.temperature else None

    def of(self, logits: Float[Tensor, "n d_vocab"], rows: Sequence[int]) -> list[int]:
        """The next token of each row.

        Args:
            logits: By row.
            rows: Its number in the whole list.
        """
        scores = logits.float()
        for warper in self._warpers:
            scores = warper(None, scores)
        scores = scores if self._noise is None else self._noise.added(scores, rows)
        found: list[int] = scores.argmax(-1).tolist()
        return found


class _Noise:
    """Gumbel noise: the likeliest token of its sum with scores is a draw from their softmax."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.generators: dict[int, torch.Generator] = {}

    def added(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        for row in rows:
            if row not in self.generators:
                self.generators[row] = torch.Generator().manual_seed(self.seed + row)
        each = [torch.empty(scores.shape[1]).exponential_(generator=self.generators[row]).log() for row in rows]
        return scores.float() - torch.stack(each).to(scores.device)
