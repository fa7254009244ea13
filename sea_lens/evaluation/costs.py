"""What an editor costs: the time of a forward pass, and the room on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import FwdHook, Model
from sea_lens.models.hooks import logits_at
from sea_lens.models.tokens import PaddedTokens, check_context_length, token_ids

PAIRS = 20
"""Pairs of an edited and an unedited pass that are timed."""
FEWEST_PAIRS = 3
ENOUGH_SECONDS = 10.0
"""No further pair is begun after so long, once there are the fewest: passes of a real model take seconds each."""


@torch.no_grad()
def forward_slowdown(model: Model, texts: Sequence[str], editor: Editor | None, pairs: int = PAIRS) -> float:
    """How many times as long a forward pass takes with an editor as without.

    Only the last token of each text makes logits: with a large vocabulary those of all fill memory.

    Edited and unedited passes take turns, in either order, after one of each that does not count. The result is the median
    ratio of neighbours, which a machine that slows down in between disturbs least.

    Args:
        model: A TransformerBridge, unedited.
        texts: The batch that passes are timed on.
        editor: The editor. None times unedited passes against unedited ones: how far from 1 noise alone gets.
        pairs: How many pairs of passes are timed at most; fewer, but three at least, where they take over ten seconds.

    Raises:
        InputError: If there are no texts, or one does not fit the model's context.
    """
    if not texts:
        raise InputError("There are no texts to time forward passes on. Give at least one.")
    rows = [token_ids(model, text) for text in texts]
    check_context_length(model, [len(row) for row in rows], [f"Text {number}" for number in range(len(rows))])
    batch = PaddedTokens.of(model, rows)
    # Taken once: `attached` checks the model each time, which a user does once for many passes.
    none: list[FwdHook] = []
    hooks = none if editor is None else editor.fwd_hooks(model)
    ratios: list[float] = []
    began = time.perf_counter()
    for number in range(pairs + 1):
        if number > FEWEST_PAIRS and time.perf_counter() - began > ENOUGH_SECONDS:
            break
        order = (none, hooks) if number % 2 else (hooks, none)
        times = [_seconds(model, candidate, batch) for candidate in order]
        unedited, edited = times if number % 2 else times[::-1]
        ratios.append(edited / unedited)
    return median(ratios[1:])


def _seconds(model: Model, hooks: list[FwdHook], batch: PaddedTokens) -> float:
    where = torch.zeros_like(batch.mask)
    where[range(len(where)), (batch.mask.sum(1) - 1).tolist()] = True
    with model.hooks(fwd_hooks=hooks):
        _wait(batch.ids.device)
        started = time.perf_counter()
        logits_at(model, batch, where)
        _wait(batch.ids.device)
        return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def bytes_on_disk(editor: Editor) -> int | None:
    """Size of the files that make an editor, without their README, which names the folder; None where it cannot be saved."""
    with TemporaryDirectory() as folder:
        try:
            editor.save_pretrained(folder)
        except InputError:
            return None
        files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "README.md"]
        return sum(path.stat().st_size for path in files)
