"""Greedy answers of one token under many editors, each block once for those that are alike up to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sea_lens.models.branching import BranchingRuns
from sea_lens.models.branching_jobs import branched
from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.lanes import Lanes, lanes_for
from sea_lens.models.prefixes import how_to_run, length_to_share, rope_limit
from sea_lens.models.replies import Listening, Reply
from sea_lens.models.tokens import all_token_ids, check_context_length
from sea_lens.models.unwrapped import unwrapped


def one_token_answers(
    model: Model,
    prompts: Sequence[str],
    editors: Sequence[EditsModels],
    *,
    stop: Sequence[str] = ("\n",),
    batch_size: int,
) -> Iterator[tuple[int, list[str]]] | None:
    """What `greedy_answers` gives with `max_new_tokens=1` under each editor, as (index, answers), in no order.

    Args:
        model: A TransformerBridge with a tokenizer.
        prompts: Texts to continue.
        editors: The editors.
        stop: Strings that end an answer.
        batch_size: Prompts in one forward pass.

    Returns:
        The answers; None where an editor or the model needs passes of its own, or the prompts share a beginning, which is
        better run once per editor.

    Raises:
        InputError: If a prompt does not fit the model's context with its answer.
    """
    rows = all_token_ids(model, prompts)
    check_context_length(model, [len(row) for row in rows], [f"Prompt {number}" for number in range(len(rows))], 1)
    longest, limit = max(map(len, rows)) + 1, rope_limit(model)
    alone = any(not each.token_local or getattr(each.where, "of_one_batch", False) for each in editors)
    if alone or length_to_share(rows) or (limit is not None and longest > limit) or lanes_for(model, 1, (), 0) is None:
        return None
    size, _ = how_to_run(model, None, batch_size, False, longest=longest, side="left")
    listening = Listening(model, 1, stop, keep_reasoning=False)
    # In the order, and in the batches, in which they are answered by themselves.
    replies = [Reply(listening, index, rows[index]) for index in sorted(range(len(rows)), key=lambda i: -len(rows[i]))]

    def job() -> tuple[Tensor, Tensor]:
        lanes = Lanes(model, min(size, len(rows)), room=0)
        found = []
        with unwrapped(model):
            for start in range(0, len(replies), size):
                logits = lanes.enter([reply.prompt for reply in replies[start : start + size]])
                found.append((logits.float().amax(-1), logits.float().argmax(-1)))
        highest, chosen = map(torch.cat, zip(*found, strict=True))
        return highest, chosen

    def answers(chosen: Tensor) -> list[str]:
        said = dict[int, str]()
        for reply, token in zip(replies, chosen.tolist(), strict=True):
            reply.ids = [token]
            said[reply.number] = reply.answer().text
        return [said[number] for number in range(len(rows))]

    runs = BranchingRuns(model, editors)
    return ((index, answers(chosen)) for index, (_, chosen) in branched(runs, job, _are_same))


def _are_same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(one, other, strict=True))
