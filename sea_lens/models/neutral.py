"""Text that an edit should leave alone: the English sample that ships with the package, or that of a model's own world."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from weakref import WeakKeyDictionary

from torch import nn

from sea_lens.models.bridge import Model, check_is_model, tokenizer_of
from sea_lens.models.tokens import all_token_ids

LEAST_READABLE = 0.99
"""Share of the shipped sample's tokens that a tokenizer must know."""
_NEUTRAL: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()


def register_neutral_texts(model: Model, texts: Sequence[str]) -> None:
    """Registers neutral texts of a model that has a language of its own.

    Args:
        model: The model.
        texts: The texts.
    """
    check_is_model(model)
    _NEUTRAL[model.original_model] = tuple(texts)


def neutral_texts(model: Model) -> list[str]:
    """Texts that an edit should leave alone: of the model's own world, or the English sample that ships with the package.

    The sample is twenty paragraphs of everyday prose, instructions, talk and a little code.

    Args:
        model: A TransformerBridge with a tokenizer.

    Returns:
        The texts; none where the model's tokenizer does not know the sample's words.

    Example:
        >>> sl.neutral_texts(model)[0].split()[0]
        '<truthful>'
    """
    check_is_model(model)
    own = _NEUTRAL.get(model.original_model)
    if own is not None:
        return list(own)
    sample = (files("sea_lens.data") / "neutral.txt").read_text(encoding="utf-8").strip().split("\n\n")
    unknown = getattr(tokenizer_of(model), "unk_token_id", None)
    ids = [token for row in all_token_ids(model, sample) for token in row]
    known = sum(token != unknown for token in ids)
    return sample if known >= max(1, LEAST_READABLE * len(ids)) else []
