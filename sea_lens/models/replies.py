"""What a model has said so far: reasoning traces, stop strings and end tokens, and the answer that comes of them."""

from __future__ import annotations

from collections.abc import Sequence

from sea_lens.data.chat import Answer
from sea_lens.models.bridge import Model, tokenizer_of
from sea_lens.models.reasoning import marker_in_prompt, trace_length


class Listening:
    """What ends an answer, and what of it is kept.

    Attributes:
        tokenizer: The model's.
        ends: Its end tokens.
        max_new_tokens: Longest answer, in tokens.
        stop: Strings that end an answer.
        keep_reasoning: Whether a reasoning trace stays in it.
    """

    def __init__(self, model: Model, max_new_tokens: int, stop: Sequence[str], keep_reasoning: bool) -> None:
        """To a model's answers."""
        self.tokenizer, self.ends = tokenizer_of(model), end_tokens(model)
        self.max_new_tokens, self.stop, self.keep_reasoning = max_new_tokens, stop, keep_reasoning


class Reply:
    """One prompt's new tokens as they come.

    Attributes:
        number: The prompt's, in the whole list.
        prompt: Its tokens.
        ids: The new ones.
    """

    def __init__(self, listening: Listening, number: int, prompt: Sequence[int]) -> None:
        """Of a prompt, without new tokens."""
        self.listening, self.number, self.prompt = listening, number, prompt
        self.ids: list[int] = []
        self._marker = marker_in_prompt(listening.tokenizer, prompt)

    @property
    def is_over(self) -> bool:
        """Whether an end token or a stop string has come, or there are as many tokens as there may be."""
        at_end = len(self.ids) >= self.listening.max_new_tokens or self.ids[-1] in self.listening.ends
        return at_end or self.has_stopped

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string has come."""
        if not self.listening.stop:
            return False
        text = self._said(self.ids)
        return text is not None and any(end in text.lstrip() for end in self.listening.stop)

    def answer(self) -> Answer:
        """What is said before the first end token or stop string, and which of them it was."""
        listening, ids = self.listening, self.ids
        length = next((position for position, token in enumerate(ids) if token in listening.ends), len(ids))
        said = self._said(ids[:length])
        whole = listening.tokenizer.decode(ids[:length], skip_special_tokens=True)
        if said is None:
            return Answer(whole.strip(), "reasoning")
        found, stopped = said.strip(), False
        for end in listening.stop:
            if end in found:
                found, stopped = found.split(end, 1)[0].rstrip(), True
        if listening.keep_reasoning:
            found = whole[: len(whole) - len(said.lstrip())].lstrip() + found if whole.endswith(said) else found
        cut = length == len(ids) == listening.max_new_tokens
        return Answer(found, "stop" if stopped else "length" if cut else "end")

    def _said(self, ids: Sequence[int]) -> str | None:
        """What is answered so far, after the trace; None while that is not over."""
        tokenizer = self.listening.tokenizer
        length, tail = trace_length(tokenizer, ids, self._marker)
        return None if length is None else tail + tokenizer.decode(ids[length:], skip_special_tokens=True)


def end_tokens(model: Model) -> list[int]:
    """The tokenizer's end token, and those that the model may stop at besides, such as turn ends of chat models."""
    wrapped = model.original_model
    config = getattr(wrapped, "config", None)
    found: set[int] = set()
    for holder in (
        model.tokenizer,
        model.cfg,
        config,
        getattr(config, "text_config", None),
        getattr(wrapped, "generation_config", None),
    ):
        ends = getattr(holder, "eos_token_id", None)
        found |= set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
    return sorted(found)
