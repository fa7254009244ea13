"""One job of several passes under many editors, each block computed once for all editors that are alike up to it.

A job is a function that puts the same tokens through a model whatever the editor: it scores answers after cached prompts,
say. Where an editor first differs at a layer, its job starts there, in each pass, from what the block gave another editor
in the same pass. A block that is skipped tells a key-value cache how many tokens it would have kept, and nothing else is
read from that layer. Results are those of separate jobs to the bit. That is tried with one editor per model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.branching import BranchingRuns
from sea_lens.models.bridge import FwdHook
from sea_lens.models.hooks import foreign_hooks
from sea_lens.models.points import hooked
from sea_lens.models.prefixes import KeyValueCache
from sea_lens.models.sites import Site

T = TypeVar("T")
_SKIPS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""By model, whether its blocks can be skipped; tried once."""


@dataclass(frozen=True, eq=False)
class _Start:
    """Where jobs begin.

    Attributes:
        layer: The last block that is skipped.
        streams: Its output in each pass, before it is edited.
        index: An editor that edits it as all that begin here do.
    """

    layer: int
    streams: list[Tensor]
    index: int


def branched(runs: BranchingRuns, job: Callable[[], T], same: Callable[[T, T], bool]) -> Iterator[tuple[int, T]]:
    """What a job gives under every editor of some runs, as (index of the editor, result), in no order.

    Editors that mix the tokens of a pass do the whole job.

    Args:
        runs: Of the model and the editors.
        job: Runs the model, in the same passes whatever the editor, and returns what is to be known.
        same: Whether two results are equal to the bit.

    Warns:
        SeaLensWarning: Once per model, if its blocks cannot be skipped, so that every job is a whole one.
    """
    left = list(range(len(runs.editors)))
    shared = [index for index in left if (editor := runs.editors[index]) is None or editor.token_local]
    wrapped = runs.model.original_model
    if len(shared) > 1 and runs.skips_blocks and _SKIPS.get(wrapped, True):
        if wrapped not in _SKIPS:
            with torch.no_grad():
                job()  # what it tries once per model is not among the passes that editors share
        for index, found in _shared(runs, job, same, shared):
            left.remove(index)
            yield index, found
    for index in left:
        yield index, _whole(runs, job, index)


def _shared(
    runs: BranchingRuns, job: Callable[[], T], same: Callable[[T, T], bool], indices: Sequence[int]
) -> Iterator[tuple[int, T]]:
    wrapped, results = runs.model.original_model, _branch(runs, job, indices, None)
    while True:
        try:
            found = next(results, None)
            if found is None:
                return
            index, result = found
            if wrapped not in _SKIPS and runs._first_difference(indices[0], index, 0) is not None:
                _SKIPS[wrapped] = same(result, _whole(runs, job, index))
        except (InputError, ModelMismatchError):  # of the job, and not of a model's build
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):  # in a model of another build
            _SKIPS[wrapped] = False
        if not _SKIPS.get(wrapped, True):
            if foreign_hooks(runs.model):  # which may be gone next time
                del _SKIPS[wrapped]
            warnings.warn(
                "This model's blocks cannot be skipped over a cache without changing its results, so every editor is run "
                "in full: as exact, and slower.",
                SeaLensWarning,
                stacklevel=3,
            )
            return
        yield index, result


def _whole(runs: BranchingRuns, job: Callable[[], T], index: int) -> T:
    with torch.no_grad(), hooked(runs.model, [hook for _, hook in runs._hooks[index]]):
        return job()


def _branch(
    runs: BranchingRuns, job: Callable[[], T], indices: Sequence[int], start: _Start | None
) -> Iterator[tuple[int, T]]:
    """Runs editors that are alike up to a block, from that block's output on (from the beginning for None)."""
    main, first = indices[0], 0 if start is None else start.layer + 1
    alike = [main]
    apart: dict[tuple[int, object], list[int]] = {}  # by the block they start after and what they do next
    for index in indices[1:]:
        layer = runs._first_difference(main, index, first)
        if layer is None:
            alike.append(index)
            continue
        acts = runs._acts(index, layer)
        inside = acts[0] != runs._acts(main, layer)[0]  # then the block itself is run again
        apart.setdefault((layer - inside, acts), []).append(index)
    streams: dict[int, list[Tensor]] = {layer: [] for layer, _ in apart if layer not in (-1, first - 1)}
    hooks: list[FwdHook] = [(Site(layer).hook_name, _keep(kept)) for layer, kept in sorted(streams.items())]
    # After those that keep a stream, which must see it unedited.
    hooks += [hook for site, hook in runs._hooks[main] if site.layer is None or site.layer >= first]
    with torch.no_grad(), _starting(runs, start), hooked(runs.model, hooks):
        result = job()
    for index in alike:
        yield index, result
    # From the top down, so that streams are let go as early as may be; the first one tried skips about half of all blocks.
    middle = (runs.model.cfg.n_layers - 1) // 2
    for (layer, _), group in sorted(apart.items(), key=lambda found: abs(found[0][0] - middle)):
        begins = start if layer == first - 1 else _Start(layer, streams[layer], group[0])
        yield from _branch(runs, job, group, begins)


def _keep(kept: list[Tensor]) -> Callable[..., None]:
    def hook(tensor: Tensor, hook: object) -> None:
        kept.append(tensor)

    return hook


@contextmanager
def _starting(runs: BranchingRuns, start: _Start | None) -> Iterator[None]:
    """Makes every block up to one pass its input on, and that one return what it gave before, pass after pass."""
    if start is None:
        yield
        return
    skipped, numbers = list(runs.model.blocks)[: start.layer + 1], count()
    hooks = [hook for site, (_, hook) in runs._hooks[start.index] if site == Site(start.layer)]

    def skipping(layer: int) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *arguments: object, **options: object) -> Tensor:
            _lengthen(layer, hidden_states, (*arguments, *options.values()))
            if layer < start.layer:
                return hidden_states
            stream = start.streams[next(numbers)]
            for hook in hooks:
                edited = hook(stream, hook=None)
                stream = stream if edited is None else edited
            return stream

        return forward

    try:
        for layer, block in enumerate(skipped):
            # Into the instance itself: set as an attribute, the bridge hands it on to the model that it wraps.
            vars(block)["forward"] = skipping(layer)
        yield
    finally:
        for block in skipped:
            vars(block).pop("forward", None)


def _lengthen(layer: int, hidden_states: Tensor, given: Sequence[object]) -> None:
    """Tells a cache how long it is at a layer: masks are made by its length. What it keeps there is never read."""
    cache = next((each for each in given if isinstance(each, KeyValueCache)), None)
    if cache is not None:
        nothing = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
        cache.update(nothing, nothing, layer)  # type: ignore[attr-defined]
