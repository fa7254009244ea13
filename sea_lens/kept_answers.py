"""A model's own answers to many demonstrations, kept batch by batch, so that a killed run goes on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from sea_lens.demonstrations import Demonstrations
from sea_lens.errors import InputError
from sea_lens.greedy import greedy_answers
from sea_lens.models import Model


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
