"""Answers of many prompts: what they begin with alike is run once, and an answer that is over gives its place to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from sea_lens.cache import Store, digest
from sea_lens.data.chat import Answer
from sea_lens.errors import InputError
from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.by_generate import answer_in_batches
from sea_lens.models.distributed import shows
from sea_lens.models.hooks import attached_editors, editing, model_facts
from sea_lens.models.lanes import Lanes, lanes_for, pop
from sea_lens.models.prefixes import how_to_run, length_to_share, rope_limit
from sea_lens.models.replies import Listening, Reply
from sea_lens.models.sampling import Choice, Sampling
from sea_lens.models.tokens import all_token_ids, check_context_length
from sea_lens.models.unwrapped import unwrapped

MOST_ROOM = 64
"""New tokens of every prompt for which room is made at once."""


@dataclass(frozen=True)
class Asking:
    """How prompts are answered.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        stop: Strings that end an answer, cut off with all after them.
        keep_reasoning: Whether a reasoning trace stays in the answer. Stop strings do not count inside one.
        sampling: How tokens are chosen.
        batch_size: Prompts in one forward pass.
        share_prefix: Whether to run a beginning that all prompts share once, where the model and its hooks allow it.
    """

    max_new_tokens: int
    stop: Sequence[str] = ()
    keep_reasoning: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    batch_size: int = 16
    share_prefix: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise InputError(
                f"max_new_tokens and batch_size must be at least 1, and {self.max_new_tokens} and {self.batch_size} were "
                "given."
            )
        if isinstance(self.stop, str) or not all(isinstance(end, str) and end for end in self.stop):
            raise InputError(f"stop is a list of texts, none of them empty, and {self.stop!r} was given.")


def answer_prompts(
    model: Model,
    prompts: Sequence[str],
    asking: Asking,
    *,
    editor: EditsModels | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> list[Answer]:
    """The model's answers, in order.

    Args:
        model: A TransformerBridge with a tokenizer.
        prompts: Texts to continue.
        asking: How.
        editor: To edit the model with; None for none.
        folder: Where to keep answers as they come. A run that was killed goes on there.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If there are no prompts, or one and its answer do not fit the model's context.
    """
    rows = all_token_ids(model, prompts)
    if not rows:
        raise InputError("No prompts were given.")
    names = ["The prompt"] if len(rows) == 1 else [f"Prompt {i}" for i in range(len(rows))]
    check_context_length(model, [len(row) for row in rows], names, asking.max_new_tokens)
    longest = max(map(len, rows)) + asking.max_new_tokens
    share_prefix = asking.share_prefix and length_to_share(rows) > 0
    batch_size, share_prefix = how_to_run(model, editor, asking.batch_size, share_prefix, longest=longest, side="left")
    store, answers = None, dict[int, Answer]()
    if folder is not None:
        how = {"max_new_tokens": asking.max_new_tokens, "stop": list(asking.stop), "endings": True}
        store = Store.within(folder, "answers", {"prompts": digest(list(prompts)), **how, **model_facts(model, editor)})
        answers = {row[0]: Answer(row[1], row[2]) for row in store.rows()}  # type: ignore[index, misc, arg-type]
    left = sorted(set(range(len(rows))) - set(answers), key=lambda index: -len(rows[index]))
    listening = Listening(model, asking.max_new_tokens, asking.stop, asking.keep_reasoning)
    replies = [Reply(listening, index, rows[index]) for index in left]
    bar = tqdm(total=len(rows), initial=len(answers), desc="answers", unit="prompt", disable=not shows(progress))

    def done(reply: Reply) -> None:
        answer = answers[reply.number] = reply.answer()
        if store is not None:
            store.append([reply.number, answer.text, answer.ending])
        bar.update()

    with bar, editing(model, editor, lambda: len(left) == len(rows)), unwrapped(model):
        lanes = _lanes(model, replies, batch_size, share_prefix) if replies else None
        if lanes is None:
            answer_in_batches(model, replies, asking.sampling, batch_size, done)
        else:
            _answer_in_lanes(lanes, replies, asking.sampling, done)
    return [answers[index] for index in range(len(rows))]


@torch.no_grad()
def answer_as_it_comes(
    model: Model, prompt: str, asking: Asking, *, editor: EditsModels | None = None
) -> Iterator[Answer]:
    """The model's answer to one prompt after each of its tokens; the last is what `answer_prompts` gives.

    The editor is on the model until the last one is taken, or the iterator closed. Where the model's answers come from
    Hugging Face's generation, the whole answer comes at once.

    Args:
        model: A TransformerBridge with a tokenizer.
        prompt: A text to continue.
        asking: How.
        editor: To edit the model with; None for none.

    Raises:
        InputError: If the prompt and its answer do not fit the model's context.
    """
    (row,) = all_token_ids(model, [prompt])
    check_context_length(model, [len(row)], ["The prompt"], asking.max_new_tokens)
    reply = Reply(Listening(model, asking.max_new_tokens, asking.stop, asking.keep_reasoning), 0, row)
    with editing(model, editor, lambda: False), unwrapped(model):
        lanes = _lanes(model, [reply], 1, False)
        if lanes is None:
            answer_in_batches(model, [reply], asking.sampling, 1, lambda _: None)
            yield reply.answer()
            return
        choice, logits = Choice(asking.sampling), lanes.enter([row])
        while True:
            reply.ids += choice.of(logits, [0])
            yield reply.answer()
            if reply.is_over:
                return
            logits = lanes.step(reply.ids[-1:])


def _lanes(model: Model, replies: Sequence[Reply], batch_size: int, share_prefix: bool) -> Lanes | None:
    """Lanes for prompts to be answered in; None where they cannot take the places of others that are over."""
    limit, new = rope_limit(model), replies[0].listening.max_new_tokens
    fixed = any(getattr(editor.where, "of_one_batch", False) for editor in attached_editors(model))
    if fixed or (limit is not None and max(len(reply.prompt) for reply in replies) + new > limit):
        return None
    shared = length_to_share([reply.prompt for reply in replies]) if share_prefix else 0
    return lanes_for(model, min(batch_size, len(replies)), replies[0].prompt[:shared], min(new - 1, MOST_ROOM))


@torch.no_grad()
def _answer_in_lanes(lanes: Lanes, replies: Sequence[Reply], sampling: Sampling, done: Callable[[Reply], None]) -> None:
    """Answers prompts, the longest first; whenever a quarter of the places are free, the next prompts take them."""
    choice, waiting, running = Choice(sampling), deque(replies), list[Reply]()
    while waiting or running:
        first, free = 0, lanes.n - len(running)
        if waiting and (not running or free >= min(len(waiting), max(1, lanes.n // 4))):
            first = len(running)
            running += [waiting.popleft() for _ in range(min(free, len(waiting)))]
            logits = lanes.enter([reply.prompt for reply in running[first:]])
        else:
            logits = lanes.step([reply.ids[-1] for reply in running])
        chosen = choice.of(logits, [reply.number for reply in running[first:]])
        for reply, token in zip(running[first:], chosen, strict=True):
            reply.ids.append(token)
        for lane in reversed(range(first, len(running))):
            if running[lane].is_over:
                lanes.leave(lane)
                done(pop(running, lane))
