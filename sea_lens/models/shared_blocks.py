"""Many editors over the same passes, each block computed once for all that are alike up to it.

Editors that first differ at a layer go on from what the block before it gave in the same pass, and the blocks below are
skipped. A block that is skipped tells a key-value cache how many tokens it would have kept; nothing else is read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor

from sea_lens.arguments import follows
from sea_lens.cache import digest
from sea_lens.errors import InputError
from sea_lens.models.bridge import EditsModels, FwdHook, Model
from sea_lens.models.points import hooked
from sea_lens.models.prefixes import KeyValueCache
from sea_lens.models.sites import Site

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Start:
    """Where jobs begin.

    Attributes:
        layer: The last block that is skipped.
        streams: Its output in each pass, before it is edited.
        index: An editor that edits it as all that begin here do.
    """

    layer: int
    streams: list[Tensor]
    index: int


@dataclass(frozen=True, eq=False)
class SharedBlocks:
    """Editors of one model, and the layers at which they do the same.

    Attributes:
        model: A TransformerBridge, unedited.
        editors: None is the unedited model. Views of one editor hold the same edits, and by these editors are told apart:
            `editor.at_layers([0])` and `editor.at_layers([0, 3])` are alike up to layer 3.
        hooks: By editor, its hooks with their sites.
        wheres: By editor, a digest of the tokens that it edits.
    """

    model: Model
    editors: Sequence[EditsModels | None]
    hooks: list[list[tuple[Site, FwdHook]]] = field(default_factory=list, repr=False, init=False)
    wheres: list[str] = field(default_factory=list, repr=False, init=False)
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
            self.hooks.append([(Site.of(hook[0]), hook) for hook in hooks])
            self.wheres.append(digest(where))

    def run(self, job: Callable[[], T], indices: Sequence[int], start: Start | None = None) -> Iterator[tuple[int, T]]:
        """Does a job under editors that are alike up to a block, from that block's output on; the first of them first.

        Args:
            job: Puts the same tokens through the model whatever the editor, in one pass or several.
            indices: Which editors.
            start: Where they begin; None for the beginning.
        """
        main, first = indices[0], 0 if start is None else start.layer + 1
        alike = [main]
        apart: dict[tuple[int, object], list[int]] = {}  # by the block they start after and what they do next
        for index in indices[1:]:
            layer = self.first_difference(main, index, first)
            if layer is None:
                alike.append(index)
                continue
            acts = self.acts(index, layer)
            # An edit of a block's output acts once it is finished; any other acts inside, and the block is run again.
            inside = acts[0] != self.acts(main, layer)[0]
            apart.setdefault((layer - inside, acts), []).append(index)
        streams: dict[int, list[Tensor]] = {layer: [] for layer, _ in apart if layer not in (-1, first - 1)}
        hooks: list[FwdHook] = [(Site(layer).hook_name, _keep(kept)) for layer, kept in sorted(streams.items())]
        # After those that keep a stream, which must see it unedited.
        hooks += [hook for site, hook in self.hooks[main] if site.layer is None or site.layer >= first]
        with torch.no_grad(), self._starting(start), hooked(self.model, hooks):
            result = job()
        for index in alike:
            yield index, result
        del result
        # The first to skip blocks is the one that is compared with a full run: it skips about half of them.
        middle = (self.model.cfg.n_layers - 1) // 2
        for (layer, _), group in sorted(apart.items(), key=lambda found: abs(found[0][0] - middle)):
            begins = start if layer == first - 1 else Start(layer, streams[layer], group[0])
            yield from self.run(job, group, begins)

    @contextmanager
    def _starting(self, start: Start | None) -> Iterator[None]:
        """Makes every block up to one pass its input on, and that one return what it gave before, pass after pass."""
        if start is None:
            yield
            return
        skipped, numbers = list(self.model.blocks)[: start.layer + 1], count()
        hooks = [hook for site, (_, hook) in self.hooks[start.index] if site == Site(start.layer)]

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

    def acts(self, index: int, layer: int) -> tuple[object, object]:
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
        where = self.wheres[index]
        return (where, inside) if inside else None, (where, after) if after else None

    def first_difference(self, one: int, other: int, first: int = 0) -> int | None:
        """The first layer, from one on, at which two editors do not do the same; None where they do throughout."""
        layers = range(first, self.model.cfg.n_layers + 1)
        return next((k for k in layers if self.acts(one, k) != self.acts(other, k)), None)


def _keep(kept: list[Tensor]) -> Callable[..., None]:
    def hook(tensor: Tensor, hook: object) -> None:
        kept.append(tensor)

    return hook


def _lengthen(layer: int, hidden_states: Tensor, given: Sequence[object]) -> None:
    """Tells a cache how long it is at a layer: masks are made by its length. What it keeps there is never read."""
    cache = next((each for each in given if follows(each, KeyValueCache)), None)
    if cache is not None:
        nothing = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
        cache.update(nothing, nothing, layer)  # type: ignore[attr-defined]
