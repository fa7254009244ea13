"""Answers that repeat themselves: how much, and of both models side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sea_lens.models.bridge import Model
from sea_lens.models.tokens import all_token_ids


def examples_of(model: Model, prompts: Sequence[str], unedited: Sequence[str], edited: Sequence[str]) -> pd.DataFrame:
    """The table of `Damage.examples`: prompts with both models' answers, and how much each answer repeats itself."""
    sides = {"unedited": list(unedited), "edited": list(edited)}
    repeated = {f"repetition {side}": [repetition_of(model, text) for text in said] for side, said in sides.items()}
    return pd.DataFrame({"prompt": list(prompts), **sides, **repeated})


def repetition_of(model: Model, text: str) -> float:
    """The `repetition` of a text's tokens."""
    return repetition(all_token_ids(model, [text])[0]) if text else 0.0


def repetition(tokens: Sequence[object], n: int = 2) -> float:
    """Share of the n-grams of a text that stood in it before, from 0 to 1; 0 for a text of fewer tokens.

    Example:
        >>> repetition("a b a b a b".split())
        0.6
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
