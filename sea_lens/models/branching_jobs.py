"""One job of several passes under many editors, each block computed once for all editors that are alike up to it.

A job is a function that puts the same tokens through a model whatever the editor: it scores answers after cached prompts,
say. How blocks are shared stands in `shared_blocks.py`. Results are those of separate jobs to the bit. That is tried with one
editor per model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.branching import BranchingRuns
from sea_lens.models.hooks import foreign_hooks
from sea_lens.models.points import hooked

T = TypeVar("T")
_SKIPS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""By model, whether its blocks can be skipped; tried once."""


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
    wrapped, results = runs.model.original_model, runs.blocks.run(job, indices)
    while True:
        try:
            found = next(results, None)
            if found is None:
                return
            index, result = found
            if wrapped not in _SKIPS and runs.blocks.first_difference(indices[0], index) is not None:
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
    with torch.no_grad(), hooked(runs.model, [hook for _, hook in runs.blocks.hooks[index]]):
        return job()
