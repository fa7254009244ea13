"""How much damage is too much: the limits past which an edit breaks a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sea_lens.arguments import check_fields
from sea_lens.errors import InputError


@dataclass(frozen=True)
class DamageLimits:
    """Past one of these, an edit breaks the model.

    On text of the model's own, KL is the mean rise of its negative log-likelihood: at 1 nat per token the edited model finds
    such text e times as perplexing. Measured on SmolLM2-135M-Instruct, dequantized Q4 (SEA and mean difference of 60 HaluEval
    rows, five sets of layers, strengths 0.125 to 4; KL is the higher of prompts and neutral text): up to 0.5 nats, 25 edits,
    every text reads well; at 0.6 to 0.9 (3 edits) grammar holds and sense begins to go; at 1.4 to 2.2 (3 edits) two of three
    texts break down ("modern, were, were, were,"); from 3.3 on (17 edits) all are babble or empty. On neutral text,
    perplexity doubles (34 to 75) at a KL of 1.0. Repeated pairs are 6 % unedited, at most 11 % up to 0.5 nats, and 50 to 90 %
    in most babble.

    Attributes:
        kl: Nats per token.
        perplexity_ratio: Perplexity of the edited model over that of the unedited one.
        repetition: Share of repeated pairs of tokens in the edited model's answers, more than in the unedited model's.

    Example:
        >>> strict = sl.DamageLimits(kl=0.01)
        >>> sl.measure_damage(model, [], editor, limits=strict).is_broken
        True
    """

    kl: float = 1.0
    perplexity_ratio: float = math.e
    repetition: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(limit > 0 for limit in (self.kl, self.perplexity_ratio, self.repetition)):
            raise InputError(f"Limits of damage are numbers above zero, and {self} was given.")
