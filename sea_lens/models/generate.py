"""The model's own most likely answers, a beginning that prompts share run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from sea_lens.data.demonstrations import Demonstrations
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model, tokenizer_of
from sea_lens.models.prefixes import CachedPrefix, length_to_share
from sea_lens.models.tokens import PaddedTokens, all_token_ids, check_context_length


def greedy_answers(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int = 32,
    *,
    stop: Sequence[str] = ("\n",),
    batch_size: int = 16,
    share_prefix: bool = False,
    progress: bool = True,
) -> list[str]:
    """The model's own most likely continuation of every prompt.

    Hooks that are on the model act, so under `editor.attached(model)` these are the edited answers. Prompts of different
    lengths are padded on the left, so with an editor `at_positions` use a batch size of 1: positions count padding. (Where a
    prefix is shared, nothing is padded.)

    Args:
        model: A TransformerBridge with a tokenizer.
        prompts: Texts to continue.
        max_new_tokens: Longest answer, in tokens.
        stop: Strings that end an answer, cut off with all after them. White space before the answer is dropped.
        batch_size: Prompts in one forward pass. It does not change the answers.
        share_prefix: Whether to run a beginning that all prompts share once. Not to be turned on under hooks of your own that
            treat tokens by their place in a pass, or look at other tokens; editors are exact either way.
        progress: Whether to show a progress bar.

    Returns:
        One answer a prompt, in order.

    Raises:
        InputError: If a prompt and its answer do not fit the model's context.
    """
    options = {"stop": stop, "batch_size": batch_size, "share_prefix": share_prefix}
    answers: dict[int, str] = {}
    with tqdm(total=len(prompts), desc="answers", unit="prompt", disable=not progress) as bar:
        for found in greedy_batches(model, prompts, max_new_tokens, **options):  # type: ignore[arg-type]
            answers |= found
            bar.update(len(found))
    return [answers[index] for index in range(len(prompts))]


def greedy_batches(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: Sequence[str],
    batch_size: int,
    share_prefix: bool,
) -> Iterator[dict[int, str]]:
    """`greedy_answers` as they come: a batch at a time, by the index of the prompt."""
    tokenizer, rows = tokenizer_of(model), all_token_ids(model, prompts)
    if not rows:
        raise InputError("No prompts were given.")
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(
            f"max_new_tokens and batch_size must be at least 1, and {max_new_tokens} and {batch_size} were given."
        )
    check_context_length(model, [len(row) for row in rows], [f"Prompt {i}" for i in range(len(rows))], max_new_tokens)
    # The model may stop at more tokens than the tokenizer's own end token (turn ends of chat models).
    configured = getattr(model.cfg, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    prefix = CachedPrefix(model, 0, None)
    length = length_to_share(rows) if share_prefix else 0
    if length:
        with torch.no_grad():
            _, prefix = prefix.extended(torch.tensor([rows[0][:length]], device=model.cfg.device), [0])
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        if length:
            new = _continued(prefix, [rows[index][length:] for index in chosen], max_new_tokens, ends)
        else:
            new = _generated(model, [rows[index] for index in chosen], max_new_tokens, stops=bool(ends))
        answers = {}
        for index, row in zip(chosen, new, strict=True):
            said = next((position for position, token in enumerate(row) if token in ends), len(row))
            answer = tokenizer.decode(row[:said], skip_special_tokens=True).strip()
            for end in stop:
                answer = answer.split(end, 1)[0].rstrip()
            answers[index] = answer
        yield answers


@torch.no_grad()
def _generated(model: Model, rows: Sequence[list[int]], max_new_tokens: int, *, stops: bool) -> list[list[int]]:
    """New tokens by TransformerLens's own generation, whatever comes after an end token among them."""
    tokens = PaddedTokens.of(model, rows, side="left")
    if max_new_tokens == 1:  # one pass, without a cache that nothing would read
        return model(tokens.ids, **tokens.forward_options())[:, -1:].argmax(-1).tolist()
    new = model.generate(
        tokens.ids,
        attention_mask=tokens.mask.long(),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        stop_at_eos=stops,
        return_type="tokens",
        verbose=False,
    )
    return new[:, tokens.ids.shape[1] :].tolist()


@torch.no_grad()
def _continued(
    prefix: CachedPrefix, rows: Sequence[list[int]], max_new_tokens: int, ends: set[int | None]
) -> list[list[int]]:
    """New tokens after a beginning that was run before, which TransformerLens's generation does not take.

    Nothing is padded: while the shorter rows are answered, what is left of the longer ones is read.
    """
    answers: list[list[int]] = [[] for _ in rows]
    going, device, length = list(range(len(rows))), prefix.model.cfg.device, min(map(len, rows))
    logits, cached = prefix.extended(torch.tensor([row[:length] for row in rows], device=device), [0] * len(rows))
    while True:
        next_tokens = logits[:, -1].argmax(-1).tolist()
        left = []
        for place, row in enumerate(going):
            if length < len(rows[row]):
                next_tokens[place] = rows[row][length]
            else:
                answers[row].append(next_tokens[place])
                if answers[row][-1] in ends or len(answers[row]) == max_new_tokens:
                    continue
            left.append(place)
        if not left:
            return answers
        going = [going[place] for place in left]
        last = torch.tensor([[next_tokens[place]] for place in left], device=device)
        logits, cached = cached.extended(last, left, keep=False)
        length += 1


def answer_and_keep(
    demonstrations: Demonstrations,
    model: Model,
    max_new_tokens: int,
    path: str | Path,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> Demonstrations:
    """`demonstrations.with_neutral_answers(model)`, with the file that it goes on from.

    Args:
        demonstrations: With prompts as the model is to read them.
        model: The model to be edited, unedited.
        max_new_tokens: Longest answer in tokens.
        path: The file, JSON lines that `Demonstrations.from_jsonl` reads. Rows that are not answered yet have no `neutral`.
        batch_size: Prompts in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If the file holds other demonstrations, or a prompt and its answer do not fit the model's context.
    """
    path = Path(path)
    rows = [replace(row, neutral=None) for row in demonstrations]
    if path.exists():
        kept = Demonstrations.from_jsonl(path).rows
        if [replace(row, neutral=None) for row in kept] != rows:
            raise InputError(f"{path} holds other demonstrations. Choose another --out, or delete that folder.")
        rows = list(kept)
    left = sorted((i for i, row in enumerate(rows) if row.neutral is None), key=lambda i: -len(rows[i].prompt))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(
        total=len(rows), initial=len(rows) - len(left), desc="answers", unit="prompt", disable=not progress
    ) as bar:
        for start in range(0, len(left), batch_size):
            chosen = left[start : start + batch_size]
            prompts = [rows[i].prompt for i in chosen]
            answers = greedy_answers(model, prompts, max_new_tokens, batch_size=batch_size, progress=False)
            for i, answer in zip(chosen, answers, strict=True):
                rows[i] = replace(rows[i], neutral=answer)
            replace(demonstrations, rows=tuple(rows)).to_jsonl(path)
            bar.update(len(chosen))
    return replace(demonstrations, rows=tuple(rows))
