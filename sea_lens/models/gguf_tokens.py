"""Whether a tokenizer made from a GGUF file cuts text into the file's own tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from sea_lens.errors import ModelMismatchError

WORD = re.compile("[▁Ġ]([A-Za-z]{3,})")
"""A token that is a word behind a space, as SentencePiece and GPT-2's bytes write it."""
MOST_WORDS = 400
FEWEST_WORDS = 50
"""Below this the vocabulary is too small to tell."""
LEAST_SHARE = 0.8
"""SmolLM2's and Gemma's right tokenizers keep all 400 words whole; the one that transformers 5.17 makes of Gemma's, none."""


def share_kept_whole(tokenizer: Any, tokens: Sequence[str]) -> float | None:
    """Of the vocabulary's words, evenly spread, the share that the tokenizer keeps as one token; None for too few words.

    A byte-pair tokenizer joins a word of its vocabulary from pieces, so that nearly all come out whole. One made of the same
    tokens by another algorithm cuts them up, and a model that reads such pieces babbles.

    Args:
        tokenizer: A Hugging Face tokenizer.
        tokens: The file's tokens, in the order of their ids.
    """
    words = [(number, found[1]) for number, token in enumerate(tokens) if (found := WORD.fullmatch(token))]
    if len(words) < FEWEST_WORDS:
        return None
    words = words[:: -(-len(words) // MOST_WORDS)]
    ids = tokenizer([f"a {word}" for _, word in words], add_special_tokens=False)["input_ids"]
    right = sum(int(row[-1] == number) for (number, _), row in zip(words, ids, strict=True))
    return right / len(words)


def check_tokenizer(name: str, tokenizer: Any, tokens: Sequence[str]) -> None:
    """Refuses a tokenizer that cuts up the words of its own vocabulary.

    Args:
        name: Of the file.
        tokenizer: What transformers made of it.
        tokens: The file's tokens, in the order of their ids.

    Raises:
        ModelMismatchError: If it does.
    """
    share = share_kept_whole(tokenizer, tokens)
    if share is not None and share < LEAST_SHARE:
        raise ModelMismatchError(
            f"transformers {version('transformers')} makes a wrong tokenizer of {name}: only {share:.0%} of the words in its "
            "vocabulary come out as one token, and the model would babble. Run `pip install --upgrade transformers`."
        )
