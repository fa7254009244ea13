"""The hook functions of an editor: what runs inside a forward pass."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sea_lens.editing.edits import KEY, Edit, given_key, is_stepwise, key_width_of, may_be_looked_at
from sea_lens.editing.where import Where
from sea_lens.errors import HookNeverFiredError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.bridge import FwdHook, Model
from sea_lens.models.passes import Pass, Passes, tracked
from sea_lens.models.plain import hooked_plain, is_plain
from sea_lens.models.points import hooked
from sea_lens.models.sites import Site

Act = Callable[[Tensor], Tensor]
"""What an edit does in a pass."""


@runtime_checkable
class Edits(Protocol):
    """What hooks need of an editor."""

    @property
    def edits(self) -> Mapping[Site, Edit]:
        """By site."""

    @property
    def where(self) -> Where | None:
        """Which tokens are edited."""


class EditHooks:
    """The hooks of one editor on one model: while it is attached, or while a list of `fwd_hooks()` lives.

    Attributes:
        fired: By site, whether a pass reached it at a token that is edited.
    """

    def __init__(self, editor: Edits, passes: Passes | None = None, tracking: Model | None = None) -> None:
        """Of an editor.

        Args:
            editor: Whose edits these are. Each hook carries it, for runners to see what is on a model.
            passes: The model's passes; None where they are not known.
            tracking: A model whose passes to track for as long as these hooks live.
        """
        self.editor, self.where, self.passes = editor, editor.where, passes
        self._flags = [False] * len(editor.edits)
        self.fired: Mapping[Site, bool] = Fired(tuple(editor.edits), self._flags)
        self._decided: Tensor | None = (
            None  # by a condition on the prompt, for the rows of the generation that is running
        )
        self._columns: tuple[object, Pass] | None = None  # of untracked passes, and what they depend on
        self._chosen: Chosen | None = None
        if tracking is not None and self.where is not None:
            stack = ExitStack()
            self.passes = stack.enter_context(tracked(tracking))
            weakref.finalize(self, stack.close)

    def hooks(self) -> list[FwdHook]:
        """One hook per site; before them the one that reads a condition, and before an edit that needs a key its reader."""
        reads = None if self.where is None else self.where.reads
        found: list[FwdHook] = [] if reads is None else [(reads.hook_name, self._reader(reads))]
        for index, (site, edit) in enumerate(self.editor.edits.items()):
            act: Act = edit
            if key_width_of(edit) is not None and not edit.is_identity:
                key = Site(site.layer, KEY)
                read, act = _with_key(key, edit)
                found.append((key.hook_name, read))
            found.append(
                (site.hook_name, self._everywhere(index, site, edit, act) or self._hook(index, site, edit, act))
            )
        for _, hook in found:
            hook.editor, hook.fired = self.editor, self.fired  # type: ignore[attr-defined]
        return found

    def _pass(self, tensor: Tensor) -> Pass:
        if self.passes is not None and self.passes.current is not None:
            return self.passes.current
        if tensor.shape[1] == 1:
            raise InputError(
                "A pass over one token may begin a text or go on with one, and hooks alone cannot tell. "
                "Take editor.fwd_hooks(model), or run the model inside editor.attached(model)."
            )
        # A mask made in inference mode cannot serve a later pass that builds a graph.
        inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        key = tuple(tensor.shape[:2]), tensor.device, inference
        if self._columns is None or self._columns[0] != key:
            self._columns = key, Pass.of_columns(tensor)
        return self._columns[1]

    def _choice(self, tensor: Tensor) -> Chosen:
        """Which tokens of the pass are edited, found at its first hook."""
        seen, chosen = self._pass(tensor), self._chosen
        if chosen is None or chosen.seen is not seen or chosen.decided is not self._decided:
            assert self.where is not None
            mask = self.where.mask(seen, self._decided)
            everything = may_be_looked_at(mask) and mask.numel() > 0 and bool(mask.all())
            chosen = self._chosen = Chosen(seen, self._decided, everything, {mask.device: mask})
        return chosen

    def _reader(self, site: Site) -> Callable[..., None]:
        def read(tensor: Tensor, hook: object) -> None:
            assert self.where is not None
            seen = self._pass(tensor)
            if seen.begins and seen.shows_prompts(tensor.shape[1]):
                self._decided = self.where.decide(site.read(tensor), seen)

        return read

    def _everywhere(self, index: int, site: Site, edit: Edit, act: Act) -> Callable[..., Tensor | None] | None:
        """The hook of an editor of every token."""
        if self.where is not None:
            return None
        flags, is_identity = self._flags, edit.is_identity

        def hook(tensor: Tensor, hook: object) -> Tensor | None:
            flags[index] = True
            return None if is_identity else site.write(act(site.read(tensor)), tensor)

        return hook

    def _hook(self, index: int, site: Site, edit: Edit, act: Act) -> Callable[..., Tensor | None]:
        flags, is_identity, stepwise = self._flags, edit.is_identity, is_stepwise(edit)

        def hook(tensor: Tensor, hook: object) -> Tensor | None:
            where = self.where
            assert where is not None
            chosen, read = self._choice(tensor), site.read(tensor)
            spared = where.spared(site, read)
            if chosen.everything and spared is None and not stepwise:
                flags[index] = True
                return None if is_identity else site.write(act(read), tensor)
            mask = chosen.on(tensor)
            if spared is not None:
                mask = mask & ~spared
            if not flags[index]:  # once it has, there is no need to wait for a device's answer
                # A condition may be met by no text, and a pass that is being compiled has no values yet.
                flags[index] = where.reads is not None or torch.compiler.is_compiling() or bool(mask.any())
            if is_identity:
                return None
            moved = edit(read, chosen.steps(tensor)) if stepwise else act(read)  # type: ignore[call-arg]
            return site.write(moved.where(mask[..., None], read), tensor)

        return hook


def _with_key(site: Site, edit: Edit) -> tuple[Callable[..., None], Act]:
    """A hook that keeps the key of a pass, and the edit that takes it from there."""
    kept: list[Tensor] = []

    def read(tensor: Tensor, hook: object) -> None:
        kept[:] = [site.read(tensor)]

    def act(h: Tensor) -> Tensor:
        if not kept or kept[0].shape[:-1] != h.shape[:-1]:
            seen = f"holds a tensor of shape {list(kept[0].shape)}" if kept else "was not reached"
            raise ModelMismatchError(
                f"The edit of layer {site.layer} needs {site.name} of every token that it edits, and it {seen} in this pass."
            )
        return given_key(edit, kept.pop())(h)

    return read, act


@dataclass(frozen=True, eq=False)
class Fired(Mapping[Site, bool]):
    """By site, whether a pass reached it at a token that is edited; as hooks change it.

    Attributes:
        sites: The sites.
        flags: One for each.
    """

    sites: tuple[Site, ...]
    flags: list[bool]

    def __getitem__(self, site: Site) -> bool:
        return self.flags[self.sites.index(site)]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The tokens of a pass that are edited.

    Attributes:
        seen: The pass.
        decided: What a condition on the prompt gave.
        everything: Whether they are known to be all.
        masks: True where a token is edited, on every device that asked.
    """

    seen: Pass
    decided: Tensor | None
    everything: bool
    masks: dict[torch.device, Tensor]

    def on(self, tensor: Tensor) -> Tensor:
        """The mask for an activation."""
        mask = self.masks.get(tensor.device)
        if mask is None:
            mask = self.masks[tensor.device] = next(iter(self.masks.values())).to(tensor.device)
        return mask[:, -tensor.shape[1] :]  # generation makes logits of the last token alone

    def steps(self, tensor: Tensor) -> Tensor:
        """By token of an activation, how many come between it and its prompt's last one."""
        found = self.seen.positions - self.seen.prompt_lengths.to(self.seen.positions.device)[:, None] + 1
        return found[:, -tensor.shape[1] :].to(tensor.device)


@contextmanager
def edited(model: Model | nn.Module, editor: Edits) -> Iterator[None]:
    """Edits everything the model runs inside the block.

    Raises:
        HookNeverFiredError: On leaving, if no forward pass reached any hook at a token that is edited.
    """
    with ExitStack() as stack:
        passes = None if editor.where is None else stack.enter_context(tracked(model))
        hooks = EditHooks(editor, passes)
        hooked_up = hooked_plain(model, hooks.hooks()) if is_plain(model) else hooked(model, hooks.hooks())
        stack.enter_context(hooked_up)
        yield
    check_fired(hooks.fired, editor.where, stacklevel=6)  # the with statement of `Editor.attached`


def check_fired(fired: Mapping[Site, bool], where: Where | None, stacklevel: int) -> None:
    """Says where an editor that was attached has edited nothing.

    Args:
        fired: By site, whether a pass reached it at a token that is edited.
        where: Which tokens those are.
        stacklevel: Of the warning about some sites.

    Raises:
        HookNeverFiredError: If nothing was edited anywhere.
    """
    if not any(fired.values()):
        raise HookNeverFiredError(
            f"The editor was attached at {', '.join(map(str, fired))}, and no forward pass reached any"
            f"{'' if where is None else ' at the positions chosen'}, so nothing was edited. Run the model "
            "inside the with block, and not with a stop_at_layer below them."
        )
    silent = [str(site) for site, did in fired.items() if not did]
    if silent:
        warnings.warn(
            f"The editor's hooks at {', '.join(silent)} never fired; the others did. Was the pass stopped early?",
            SeaLensWarning,
            stacklevel=stacklevel,
        )
