"""One batch of tokens under many editors, each block computed once for all runs that are alike up to it.

Runs that first differ at layer k start from the residual stream captured there, and the blocks below are skipped. The
results are those of separate full runs to the bit. That is checked on every model's first batch, with one full run; where it
does not hold, full runs are made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.cache import digest
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.bridge import FwdHook, Model
from sea_lens.models.passes import telling
from sea_lens.models.sites import Site
from sea_lens.models.tokens import PaddedTokens

Stream = Float[Tensor, "batch pos d_model"]
Logits = Float[Tensor, "batch pos d_vocab"]


@dataclass(frozen=True, eq=False)
class BranchingRuns:
    """Runs of a model under several editors that share what they can.

    Attributes:
        model: A TransformerBridge, unedited.
        editors: One a run; None is the unedited model. Views of one editor hold the same edits, and by these runs are told
            apart: `editor.at_layers([0])` and `editor.at_layers([0, 3])` are alike up to layer 3.
        skips_blocks: Whether blocks are skipped at all; False makes full runs.
    """

    model: Model
    editors: Sequence[Editor | None]
    skips_blocks: bool = True
    _exact: list[bool] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        given = [editor for editor in self.editors if editor is not None]
        if not self.editors:
            raise InputError("At least one run is needed, and there are no editors.")
        checked: dict[
            int, set[Site]
        ] = {}  # by card: views of a checked editor need not be, and a check lists all hooks
        for editor in given:
            sites = checked.setdefault(id(editor.card), set())
            if not sites.issuperset(editor.sites):
                editor.check(self.model)
                sites.update(editor.sites)

    def logits(self, tokens: PaddedTokens) -> Iterator[tuple[int, Logits]]:
        """Logits of one batch under every editor, as (index of the editor, logits); the first editor comes first.

        Args:
            tokens: The batch.

        Warns:
            SeaLensWarning: If this model's blocks cannot be skipped, so that full runs are made.
        """
        left = list(range(len(self.editors)))
        with telling(self.model, tokens.prompt_lengths):
            reads = any(
                one is not None and one.where is not None and one.where.reads is not None for one in self.editors
            )
            if self.skips_blocks and self._exact != [False] and not reads:  # a block that is skipped is not read
                for index, logits in self._shared(tokens, list(left)):
                    left.remove(index)
                    yield index, logits
            yield from ((index, self._full_run(tokens, index)) for index in left)

    def _shared(self, tokens: PaddedTokens, indices: Sequence[int]) -> Iterator[tuple[int, Logits]]:
        """Runs that share blocks; the first that skips some is given if it came out as its full run does, to the bit."""
        branched = self._branch(tokens, indices, None)
        while not self._exact:
            try:
                index, logits = next(branched)
                if self._first_difference(indices[0], index, 0) is not None:
                    full = self._full_run(tokens, index)
                    self._exact.append(torch.allclose(logits, full, rtol=0, atol=0, equal_nan=True))
            except StopIteration:
                return
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):  # in a model of another build
                self._exact.append(False)
            if self._exact == [False]:
                warnings.warn(
                    "This model's blocks cannot be skipped without changing its results, so every run is a full one: as "
                    "exact, and slower.",
                    SeaLensWarning,
                    stacklevel=3,
                )
                return
            yield index, logits
        yield from branched

    def _full_run(self, tokens: PaddedTokens, index: int) -> Logits:
        editor = self.editors[index]
        with torch.no_grad(), self.model.hooks(fwd_hooks=[] if editor is None else editor.fwd_hooks(self.model)):
            return self.model(tokens.ids, **tokens.forward_options())

    def _branch(
        self, tokens: PaddedTokens, indices: Sequence[int], start: tuple[int, Stream] | None
    ) -> Iterator[tuple[int, Logits]]:
        """Runs editors that are alike up to a block, from that block's output on (from the beginning for None)."""
        main, first = indices[0], 0 if start is None else start[0] + 1
        alike, apart = [main], dict[tuple[int, object], list[int]]()  # by layer and edit there: who first differ so
        for index in indices[1:]:
            layer = self._first_difference(main, index, first)
            if layer is None:
                alike.append(index)
            else:
                apart.setdefault((layer, self._edit_there(index, layer)), []).append(index)
        # An edit of resid_post acts on a block's finished output; any other acts inside, and the block is run again.
        inside = any(
            editor is not None and any(site.name != "resid_post" for site in editor.sites) for editor in self.editors
        )
        needed = {layer - inside for layer, _ in apart} - {-1}
        streams: dict[int, Stream] = {}
        hooks: list[FwdHook] = [(Site(layer).check(self.model), _keep(streams, layer)) for layer in sorted(needed)]
        editor = self.editors[main]
        if editor is not None:  # after those that keep a stream, which must see it unedited
            later = [site for site in editor.sites if site.layer is None or site.layer >= first]
            hooks += editor.at_layers(later).fwd_hooks(self.model) if later else []
        with torch.no_grad(), _starting_after(self.model, start), self.model.hooks(fwd_hooks=hooks):
            logits = self.model(tokens.ids, **tokens.forward_options())
        for index in alike:
            yield index, logits
        del logits
        # The first to skip blocks is checked against a full run: one that skips about half of them.
        middle = (self.model.cfg.n_layers - 1) // 2
        for (layer, _), group in sorted(apart.items(), key=lambda found: abs(found[0][0] - middle)):
            if inside:
                yield from self._branch(tokens, group, (layer - 1, streams[layer - 1]) if layer else None)
            else:
                yield from self._branch(tokens, group, (layer, self._edited(group[0], layer, streams[layer])))

    def _edited(self, index: int, layer: int, stream: Stream) -> Stream:
        """A block's output as an editor leaves it."""
        editor = self.editors[index]
        if editor is None or Site(layer) not in editor.edits:
            return stream
        ((_, hook),) = editor.at_layers([layer]).fwd_hooks(self.model)
        edited = hook(stream, hook=None)
        return stream if edited is None else edited

    def _edit_there(self, index: int, layer: int) -> object:
        """What an editor does at a layer, and where; at the layer after the last, outside the blocks."""
        editor = self.editors[index]
        there = None if layer == self.model.cfg.n_layers else layer
        found = (
            ()
            if editor is None
            else tuple((site, id(edit)) for site, edit in editor.edits.items() if site.layer == there)
        )
        return (found, digest(editor.where)) if editor is not None and found else None

    def _first_difference(self, one: int, other: int, first: int) -> int | None:
        layers = range(first, self.model.cfg.n_layers + 1)
        return next((k for k in layers if self._edit_there(one, k) != self._edit_there(other, k)), None)


def _keep(streams: dict[int, Stream], layer: int) -> Callable[..., None]:
    def hook(tensor: Tensor, hook: object) -> None:
        streams[layer] = tensor

    return hook


@contextmanager
def _starting_after(model: Model, start: tuple[int, Stream] | None) -> Iterator[None]:
    """Makes every block up to one pass its input on, and that one return a stream of ours, whatever it is given."""
    skipped = [] if start is None else list(model.blocks)[: start[0] + 1]

    def pass_on(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states

    def resume(*_: object, **__: object) -> Tensor:
        assert start is not None
        return start[1]

    try:
        for number, block in enumerate(skipped, start=1):
            # Into the instance itself: set as an attribute, the bridge hands it on to the model that it wraps.
            vars(block)["forward"] = resume if number == len(skipped) else pass_on
        yield
    finally:
        for block in skipped:
            vars(block).pop("forward", None)
