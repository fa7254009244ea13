"""What an editor costs: how much slower a forward pass becomes, and how much room the editor takes on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.models.tokens import PaddedTokens, check_context_length, token_ids


def timing_batch(model: Model, texts: Sequence[str]) -> PaddedTokens:
    """Texts as one batch to time passes on.

    Raises:
        InputError: If there is none, or one is empty or does not fit the model's context.
    """
    rows = [token_ids(model, text) for text in texts]
    if not rows:
        raise InputError("No texts were given to time forward passes on. Give at least one.")
    check_context_length(model, [len(row) for row in rows], [f"Text {number}" for number in range(len(rows))])
    return PaddedTokens.of(model, rows)


@torch.no_grad()
def forward_slowdown(model: Model, editor: Editor | None, batch: PaddedTokens, repeats: int) -> float:
    """How many times as long a forward pass takes with an editor as without.

    Edited and unedited passes take turns, in either order, after one of each that does not count; the result is the median of
    the ratios of neighbours, which a machine that slows down in between disturbs least.

    Args:
        model: A TransformerBridge, unedited.
        editor: None times unedited passes against unedited ones: how far from 1 noise alone gets.
        batch: What passes are over; see `timing_batch`.
        repeats: Pairs of passes.

    Raises:
        InputError: If `repeats` is not at least 1.
    """
    if repeats < 1:
        raise InputError(f"At least one pair of passes is needed to time an editor, and repeats={repeats} was given.")
    ratios = []
    for number in range(repeats + 1):
        order = (None, editor) if number % 2 else (editor, None)
        times = [_seconds(model, candidate, batch) for candidate in order]
        unedited, edited = times if number % 2 else times[::-1]
        ratios.append(edited / unedited)
    return median(ratios[1:])


def _seconds(model: Model, editor: Editor | None, batch: PaddedTokens) -> float:
    # Plain hooks: `attached` checks the model each time, which a user does once for many passes.
    with model.hooks(fwd_hooks=[] if editor is None else editor.fwd_hooks()):
        _wait(batch.ids.device)
        started = time.perf_counter()
        model(batch.ids, **batch.forward_options())
        _wait(batch.ids.device)
        return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def bytes_on_disk(editor: Editor) -> int | None:
    """Size of all files that `save_pretrained` writes; None for editors that cannot be saved, such as random controls."""
    with TemporaryDirectory() as folder:
        try:
            editor.save_pretrained(folder)
        except InputError:
            return None
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
