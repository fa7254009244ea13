"""One batch of tokens under many editors, each block computed once for all runs that are alike up to it.

How blocks are shared stands in `shared_blocks.py`. The results are those of separate full runs to the bit. That is checked
with one full run, once for every model and block to start after; where it does not hold, full runs are made.

What comes out is what the unembedding reads: tokens x width. `Unembedding` makes logits of it, a part at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sea_lens.errors import SeaLensWarning
from sea_lens.models.branched_tokens import BranchedTokens, are_run_alone
from sea_lens.models.bridge import EditsModels, FwdHook, Model
from sea_lens.models.distributions import logits_at_once
from sea_lens.models.hooks import foreign_hooks, logits_of, states_at
from sea_lens.models.passes import telling
from sea_lens.models.points import hooked
from sea_lens.models.shared_blocks import SharedBlocks
from sea_lens.models.tokens import PaddedTokens

States = Float[Tensor, "n width"]

_RUN_IN_FULL: WeakSet[nn.Module] = WeakSet()
"""Models whose blocks cannot be skipped."""
_SEEN_EXACT: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()
"""By model, the layers from which on runs were seen to come out as full ones."""


@dataclass(frozen=True, eq=False)
class Unembedding:
    """Makes logits of what a model's unembedding reads.

    Attributes:
        model: The model.
        hooks: On its logits.
    """

    model: Model
    hooks: Sequence[FwdHook] = ()

    @torch.no_grad()
    def logits(self, states: States) -> Float[Tensor, "n d_vocab"]:
        """All of them."""
        return logits_of(self.model, states, self.hooks)

    def parts(self, states: States) -> Iterator[Float[Tensor, "part d_vocab"]]:
        """A part at a time, which bounds memory whatever the vocabulary."""
        yield from map(self.logits, torch.split(states, logits_at_once(self.model)))


@dataclass(frozen=True, eq=False)
class BranchingRuns:
    """Runs of a model under several editors that share what they can.

    Attributes:
        model: A TransformerBridge, unedited.
        editors: One per run; None is the unedited model.
        skips_blocks: Whether blocks are skipped at all; False makes full runs.
        blocks: What the runs share.
    """

    model: Model
    editors: Sequence[EditsModels | None]
    skips_blocks: bool = True
    _exact: list[bool] = field(default_factory=list, repr=False, init=False)
    blocks: SharedBlocks = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", SharedBlocks(self.model, self.editors))

    def unembedding(self, index: int) -> Unembedding:
        """What makes logits of the states under an editor."""
        after = [
            hook for site, hook in self.blocks.hooks[index] if site.layer is None and site.name != "unembed.hook_in"
        ]
        return Unembedding(self.model, after)

    def states(self, tokens: PaddedTokens, where: Bool[Tensor, "batch pos"]) -> Iterator[tuple[int, States]]:
        """What the unembedding reads under every editor, as (index of the editor, states); the first editor comes first.

        Args:
            tokens: The batch.
            where: The positions whose states are returned, row after row.

        Warns:
            SeaLensWarning: Once per model, if its blocks cannot be skipped, so that full runs are made.
        """
        left, longest = list(range(len(self.editors))), int(tokens.mask.sum(1).max())
        # Where one editor's rows have to be run alone, all are: runs are compared with each other.
        alone = are_run_alone(self.model, self.editors, longest)
        positions = tokens.positions if isinstance(tokens, BranchedTokens) else None
        with telling(self.model, tokens.prompt_lengths, positions):
            if (
                self.skips_blocks
                and self._exact != [False]
                and not alone
                and self.model.original_model not in _RUN_IN_FULL
            ):
                for index, states in self._shared(tokens, where, list(left)):
                    left.remove(index)
                    yield index, states
            yield from ((index, self._full_run(tokens, where, index, alone)) for index in left)

    def _shared(self, tokens: PaddedTokens, where: Tensor, indices: Sequence[int]) -> Iterator[tuple[int, States]]:
        """Runs that share blocks; the first that skips some is given if it came out as its full run does, to the bit."""
        branched = self.blocks.run(lambda: states_at(self.model, tokens, where), indices)
        seen = _SEEN_EXACT.setdefault(self.model.original_model, set())
        while True:
            try:
                found = next(branched, None)
                if found is None:
                    return
                index, states = found
                layer = None if self._exact else self.blocks.first_difference(indices[0], index)
                if layer is not None:
                    is_exact = layer in seen and not foreign_hooks(self.model)
                    if not is_exact:
                        full = self._full_run(tokens, where, index)
                        is_exact = torch.allclose(states, full, rtol=0, atol=0, equal_nan=True)
                        if is_exact and not foreign_hooks(self.model):
                            seen.add(layer)
                    self._exact.append(is_exact)
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):  # in a model of another build
                self._exact[:] = [False]
            if self._exact == [False]:
                if not foreign_hooks(self.model):  # which may be gone next time
                    _RUN_IN_FULL.add(self.model.original_model)
                warnings.warn(
                    "This model's blocks cannot be skipped without changing its results, so every run is a full one: as "
                    "exact, and slower.",
                    SeaLensWarning,
                    stacklevel=3,
                )
                return
            yield index, states

    def _full_run(self, tokens: PaddedTokens, where: Tensor, index: int, alone: bool = False) -> States:
        with torch.no_grad(), hooked(self.model, [hook for _, hook in self.blocks.hooks[index]]):
            if not alone:
                return states_at(self.model, tokens, where)
            found = []
            for number in range(len(tokens.ids)):
                row = tokens.row(number)
                with telling(self.model, row.prompt_lengths):
                    found.append(states_at(self.model, row, where[number][tokens.mask[number]][None]))
            return torch.cat(found)
