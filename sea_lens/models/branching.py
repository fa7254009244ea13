"""One batch of tokens under many editors, each block computed once for all runs that are alike up to it.

Runs that first differ at layer k start from the residual stream captured there, and the blocks below are skipped. The
results are those of separate full runs to the bit. That is checked with one full run, once for every model and block to start
after; where it does not hold, full runs are made.

What comes out is what the unembedding reads: tokens x width. `Unembedding` makes logits of it, a part at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sea_lens.cache import digest
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.branched_tokens import BranchedTokens, are_run_alone
from sea_lens.models.bridge import EditsModels, FwdHook, Model
from sea_lens.models.distributions import logits_at_once
from sea_lens.models.hooks import foreign_hooks, logits_of, states_at
from sea_lens.models.passes import telling
from sea_lens.models.sites import Site
from sea_lens.models.skipping import Start, starting_after
from sea_lens.models.tokens import PaddedTokens

Stream = Float[Tensor, "batch pos d_model"]
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
        yield from map(self.logits, torch.split(states, logits_at_once(self.model.cfg.d_vocab)))


@dataclass(frozen=True, eq=False)
class BranchingRuns:
    """Runs of a model under several editors that share what they can.

    Attributes:
        model: A TransformerBridge, unedited.
        editors: One per run; None is the unedited model. Views of one editor hold the same edits, and by these runs are told
            apart: `editor.at_layers([0])` and `editor.at_layers([0, 3])` are alike up to layer 3.
        skips_blocks: Whether blocks are skipped at all; False makes full runs.
    """

    model: Model
    editors: Sequence[EditsModels | None]
    skips_blocks: bool = True
    _exact: list[bool] = field(default_factory=list, repr=False, init=False)
    _hooks: list[list[tuple[Site, FwdHook]]] = field(default_factory=list, repr=False, init=False)
    _wheres: list[str] = field(default_factory=list, repr=False, init=False)
    _known: dict[tuple[int, int], tuple[object, object]] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        if not self.editors:
            raise InputError("At least one run is needed, and there are no editors.")
        checked = set[tuple[Site, int]]()
        for editor in self.editors:
            acts = set() if editor is None else {(site, id(edit)) for site, edit in editor.edits.items()}
            if editor is not None and not acts <= checked:  # a check lists all hooks; one serves all views of an editor
                editor.check(self.model)
                checked |= acts
            # Where every token is edited, hooks need not know the pass.
            where = None if editor is None else editor.where
            hooks = [] if editor is None else editor.fwd_hooks() if where is None else editor.fwd_hooks(self.model)
            self._hooks.append([(Site.of(hook[0]), hook) for hook in hooks])
            self._wheres.append(digest(where))

    def unembedding(self, index: int) -> Unembedding:
        """What makes logits of the states under an editor."""
        after = [hook for site, hook in self._hooks[index] if site.layer is None and site.name != "unembed.hook_in"]
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
        branched = self._branch(tokens, where, indices, None)
        seen = _SEEN_EXACT.setdefault(self.model.original_model, set())
        while True:
            try:
                found = next(branched, None)
                if found is None:
                    return
                index, states = found
                layer = None if self._exact else self._first_difference(indices[0], index, 0)
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
        with torch.no_grad(), self.model.hooks(fwd_hooks=[hook for _, hook in self._hooks[index]]):
            if not alone:
                return states_at(self.model, tokens, where)
            found = []
            for number in range(len(tokens.ids)):
                row = tokens.row(number)
                with telling(self.model, row.prompt_lengths):
                    found.append(states_at(self.model, row, where[number][tokens.mask[number]][None]))
            return torch.cat(found)

    def _branch(
        self, tokens: PaddedTokens, where: Tensor, indices: Sequence[int], start: Start | None
    ) -> Iterator[tuple[int, States]]:
        """Runs editors that are alike up to a block, from that block's output on (from the beginning for None)."""
        main, first = indices[0], 0 if start is None else start[0] + 1
        alike = [main]
        apart: dict[tuple[int, object], list[int]] = {}  # by the block they start after and what they do next
        for index in indices[1:]:
            layer = self._first_difference(main, index, first)
            if layer is None:
                alike.append(index)
                continue
            acts = self._acts(index, layer)
            # An edit of a block's output acts once it is finished; any other acts inside, and the block is run again.
            inside = acts[0] != self._acts(main, layer)[0]
            apart.setdefault((layer - inside, acts), []).append(index)
        streams: dict[int, Stream] = {}
        needed = {layer for layer, _ in apart} - {-1, first - 1}
        hooks: list[FwdHook] = [(Site(layer).hook_name, _keep(streams, layer)) for layer in sorted(needed)]
        # After those that keep a stream, which must see it unedited.
        hooks += [hook for site, hook in self._hooks[main] if site.layer is None or site.layer >= first]
        with torch.no_grad(), starting_after(self.model, start), self.model.hooks(fwd_hooks=hooks):
            states = states_at(self.model, tokens, where)
        for index in alike:
            yield index, states
        del states
        # The first to skip blocks is checked against a full run: one that skips about half of them.
        middle = (self.model.cfg.n_layers - 1) // 2
        for (layer, _), group in sorted(apart.items(), key=lambda found: abs(found[0][0] - middle)):
            if layer == first - 1:
                yield from self._branch(tokens, where, group, start)
            else:
                yield from self._branch(tokens, where, group, (layer, self._edited(group[0], layer, streams[layer])))

    @torch.no_grad()
    def _edited(self, index: int, layer: int, stream: Stream) -> Stream:
        """A block's output as an editor leaves it."""
        for site, (_, hook) in self._hooks[index]:
            if site == Site(layer):
                edited = hook(stream, hook=None)
                stream = stream if edited is None else edited
        return stream

    def _acts(self, index: int, layer: int) -> tuple[object, object]:
        """What an editor does inside a block, and to its output. After the last layer comes what is outside the blocks."""
        known = self._known.get((index, layer))
        if known is None:
            known = self._known[index, layer] = self._acts_of(index, layer)
        return known

    def _acts_of(self, index: int, layer: int) -> tuple[object, object]:
        editor, there = self.editors[index], None if layer == self.model.cfg.n_layers else layer
        acts = (
            [] if editor is None else [(site, id(edit)) for site, edit in editor.edits.items() if site.layer == there]
        )
        inside, after = (
            tuple(act for act in acts if (act[0].name == "resid_post") is is_output) for is_output in (False, True)
        )
        where = self._wheres[index]
        return (where, inside) if inside else None, (where, after) if after else None

    def _first_difference(self, one: int, other: int, first: int) -> int | None:
        layers = range(first, self.model.cfg.n_layers + 1)
        return next((k for k in layers if self._acts(one, k) != self._acts(other, k)), None)


def _keep(streams: dict[int, Stream], layer: int) -> Callable[..., None]:
    def hook(tensor: Tensor, hook: object) -> None:
        streams[layer] = tensor

    return hook
