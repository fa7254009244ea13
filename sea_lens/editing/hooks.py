"""The hook functions of an editor: what runs inside a forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from torch import Tensor

from sea_lens.editing.edits import Edit
from sea_lens.editing.where import Where
from sea_lens.errors import InputError
from sea_lens.models.bridge import FwdHook, Model
from sea_lens.models.passes import Pass, Passes, tracked
from sea_lens.models.sites import Site


class EditHooks:
    """The hooks of one editor on one model: while it is attached, or while a list of `fwd_hooks()` lives.

    Attributes:
        fired: By site, whether a pass reached it at a token that is edited.
    """

    def __init__(
        self,
        edits: Mapping[Site, Edit],
        where: Where | None,
        passes: Passes | None = None,
        tracking: Model | None = None,
    ) -> None:
        """Of an editor's edits.

        Args:
            edits: By site.
            where: Which tokens are edited.
            passes: The model's passes; None where they are not known.
            tracking: A model whose passes to track for as long as these hooks live.
        """
        self.edits, self.where, self.passes = edits, where, passes
        self.fired = dict.fromkeys(edits, False)
        self._decided: Tensor | None = (
            None  # by a condition on the prompt, for the rows of the generation that is running
        )
        if tracking is not None and where is not None:
            stack = ExitStack()
            self.passes = stack.enter_context(tracked(tracking))
            weakref.finalize(self, stack.close)

    def hooks(self, names: Mapping[Site, str]) -> list[FwdHook]:
        """One hook per site, and before them the one that reads a condition."""
        reads = None if self.where is None else self.where.reads
        first: list[FwdHook] = [] if reads is None else [(names[reads], self._reader(reads))]
        return first + [(names[site], self._hook(site, edit)) for site, edit in self.edits.items()]

    def _pass(self, tensor: Tensor) -> Pass:
        if self.passes is not None and self.passes.current is not None:
            return self.passes.current
        if tensor.shape[1] == 1:
            raise InputError(
                "A pass over one token may begin a text or go on with one, and hooks alone cannot tell. "
                "Take editor.fwd_hooks(model), or run the model inside editor.attached(model)."
            )
        return Pass.of_columns(tensor)

    def _reader(self, site: Site) -> Callable[..., None]:
        def read(tensor: Tensor, hook: object) -> None:
            assert self.where is not None
            seen = self._pass(tensor)
            if seen.begins:
                self._decided = self.where.decide(site.read(tensor), seen)

        return read

    def _hook(self, site: Site, edit: Edit) -> Callable[..., Tensor | None]:
        where = self.where

        def hook(tensor: Tensor, hook: object) -> Tensor | None:
            if where is None:
                self.fired[site] = True
                return None if edit.is_identity else site.write(edit(site.read(tensor)), tensor)
            mask = where.mask(self._pass(tensor), self._decided).to(tensor.device)
            if not self.fired[site]:  # once it has, there is no need to wait for a device's answer
                self.fired[site] = where.reads is not None or bool(mask.any())  # a condition may be met by no text
            if edit.is_identity:
                return None
            read = site.read(tensor)
            return site.write(edit(read).where(mask[..., None], read), tensor)

        return hook
