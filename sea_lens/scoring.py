"""Log-probabilities of completions, under whatever hooks are on the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from sea_lens.errors import InputError
from sea_lens.models import Model, PaddedTokens, TokenizedAnswer, check_context_length


@torch.no_grad()
def completion_log_probabilities(
    model: Model, texts: Sequence[tuple[str, str]], *, batch_size: int = 16, progress: bool = False
) -> list[float]:
    """Summed log-probability, in nats, that the model gives each completion after its prompt.

    Args:
        model: A TransformerBridge with a tokenizer. Measure an edited one under `with editor.attached(model):`.
        texts: Prompts, each with a completion. They are tokenised as one text.
        batch_size: Texts in one forward pass. It does not change the result.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a completion comes out as no tokens, or a text does not fit the model's context.
    """
    if not texts or batch_size < 1:
        raise InputError(
            f"At least one text and a batch_size of 1 are needed; {len(texts)} and {batch_size} were given."
        )
    rows = [TokenizedAnswer.of(model, prompt, completion) for prompt, completion in texts]
    empty = [index for index, row in enumerate(rows) if row.answer_start >= len(row.ids) or not row.answer_start]
    if empty:
        prompt, completion = texts[empty[0]]
        raise InputError(
            f"{len(empty)} texts have a prompt or a completion of no tokens, such as {prompt!r} with {completion!r}. "
            "Drop or mend them."
        )
    check_context_length(model, [len(row.ids) for row in rows], [f"Text {index}" for index in range(len(rows))])
    scores = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    with tqdm(total=len(rows), desc="log-probabilities", unit="text", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            tokens = PaddedTokens.of(model, [rows[index].ids for index in batch])
            logits = model(tokens.ids, **tokens.forward_options())
            for index, ids, row in zip(batch, tokens.ids, logits, strict=True):
                answer = slice(rows[index].answer_start, len(rows[index].ids))
                before = row[answer.start - 1 : answer.stop - 1].float().log_softmax(-1)
                said = ids[answer].to(before.device)
                scores[index] = float(before.gather(-1, said[:, None]).double().sum())
            bar.update(len(batch))
    return scores
