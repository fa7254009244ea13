"""The hooks on a model: whose they are, and ours that gather activations and keep logits small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sea_lens.cache import JSON
from sea_lens.errors import HookNeverFiredError, InputError
from sea_lens.models.bridge import EditsModels, FwdHook, Model
from sea_lens.models.distributions import logits_at_once
from sea_lens.models.passes import unnoted
from sea_lens.models.points import hooked
from sea_lens.models.sites import Site
from sea_lens.models.skipping import without_blocks
from sea_lens.models.tokens import PaddedTokens
from sea_lens.models.unchanged import known_weights
from sea_lens.models.unwrapped import forward

_NEED_BLOCKS: WeakSet[nn.Module] = WeakSet()
"""Models that make no logits without their blocks."""


def attached_editors(model: Model) -> list[EditsModels]:
    """The editors whose hooks are on a model, in the order in which they act."""
    editors: list[EditsModels] = []
    for _, hook in _hooks_on(model):
        editor = getattr(hook, "editor", None)
        if editor is not None and not any(editor is other for other in editors):
            editors.append(editor)
    return editors


def foreign_hooks(model: Model) -> list[str]:
    """The names of hook points that carry a user's own hooks: neither an editor's nor TransformerLens's."""
    return sorted({name for name, hook in _hooks_on(model) if getattr(hook, "editor", None) is None})


@contextmanager
def without_editors(model: Model) -> Iterator[None]:
    """Silences the editors on a model inside the block: they edit nothing there, and note no pass."""
    silenced: list[tuple[Any, Mapping[int, Any]]] = []
    for point in {id(point): point for point in model.hook_dict.values()}.values():  # some have two names
        handles = getattr(point, "fwd_hooks", ())
        ours = {each.hook.id for each in handles if getattr(each.user_hook, "editor", None) is not None}
        if ours:
            kept = point._forward_hooks  # type: ignore[attr-defined]
            silenced.append((kept, dict(kept)))
            for key in ours:
                kept.pop(key, None)
    try:
        yield
    finally:
        for kept, whole in silenced:
            kept.clear()
            kept.update(whole)


def model_facts(model: Model, editor: EditsModels | None = None) -> dict[str, JSON]:
    """What decides what a model computes: its weights, the editors on it and the one given. For the facts of a `Store`.

    Raises:
        InputError: If the model carries hooks of the user's own, whose effect is unknown.
    """
    foreign = foreign_hooks(model)
    if foreign:
        raise InputError(
            f"The model carries hooks of your own ({', '.join(foreign[:4])}{', ...' if len(foreign) > 4 else ''}), so what "
            "it computes cannot be kept in a folder as the model's. Call model.reset_hooks(), or leave `folder` out."
        )
    return {
        "weights": known_weights(model),
        "editor": None if editor is None else editor.fingerprint,
        "attached": [attached.fingerprint for attached in attached_editors(model)],
    }


def gather_hooks(
    sites: Sequence[Site],
    rows: Int[Tensor, " texts"],
    positions: Int[Tensor, "texts widest"],
    weights: Float[Tensor, "texts widest"],
) -> tuple[list[FwdHook], dict[Site, Tensor]]:
    """Hooks that gather a weighted sum over some positions of each text, in float32, and where they put it.

    It stays on the activation's device, for a copy at every site would wait for the device every time.

    Args:
        sites: Whose activations.
        rows: By text, its row of the pass.
        positions: By text, columns of the pass.
        weights: Theirs.
    """
    found: dict[Site, Tensor] = {}

    def gather_at(site: Site) -> FwdHook:
        def hook(tensor: Tensor, hook: object) -> None:
            # Everything follows the activation's device: the layers of one model may lie on several.
            own = rows.to(tensor.device, non_blocking=True)[:, None], positions.to(tensor.device, non_blocking=True)
            picked = site.read(tensor)[own].float()
            found[site] = (picked * weights.to(picked, non_blocking=True)[..., None]).sum(1)

        return site.hook_name, hook

    return list(map(gather_at, sites)), found


def copied_to_cpu(tensor: Tensor) -> Tensor:
    """A tensor on the CPU. From a GPU it is under way: call `torch.cuda.synchronize` before it is read."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


@contextmanager
def editing(model: Model, editor: EditsModels | None, is_whole: Callable[[], bool]) -> Iterator[None]:
    """Attaches an editor for a block; None for none.

    Args:
        model: The model.
        editor: The editor.
        is_whole: Asked at the end: whether all texts of the job were run in the block. A resumed run, or one process of
            several, may have only texts that are too short for the editor's positions, so an edit that never acts is no
            error there.

    Raises:
        HookNeverFiredError: If all texts were run and none was edited.
    """
    if editor is None:
        yield
        return
    try:
        with editor.attached(model):
            yield
    except HookNeverFiredError:
        if is_whole():
            raise


def _hooks_on(model: Model) -> Iterator[tuple[str, object]]:
    for name, point in model.hook_dict.items():
        for handle in getattr(point, "fwd_hooks", ()):
            hook = getattr(handle, "user_hook", None)
            if not str(getattr(hook, "__module__", "")).startswith("transformer_lens."):
                yield name, hook


def logits_at(
    model: Model, tokens: PaddedTokens, where: Bool[Tensor, "batch pos"], **options: object
) -> Float[Tensor, "n d_vocab"]:
    """Logits at chosen positions, row after row. The others are never made: with a large vocabulary they fill memory.

    Args:
        model: The model, with whatever hooks are on it.
        tokens: What it is run on.
        where: The positions.
        options: Of the model's forward pass; those of a whole text for none.
    """

    def choose(tensor: Tensor, hook: object) -> Tensor | None:
        return tensor[where.to(tensor.device)][None] if tensor.shape[:2] == where.shape else None

    with hooked(model, [("unembed.hook_in", choose)]):
        logits = forward(model, tokens.ids, **(options or tokens.forward_options()))
    return logits[0] if logits.shape[:2] == (1, int(where.sum())) else logits[where.to(logits.device)]


def logits_in_parts(
    model: Model, tokens: PaddedTokens, where: Bool[Tensor, "batch pos"], **options: object
) -> Iterable[Float[Tensor, "part d_vocab"]]:
    """The same, no more in memory together than `logits_at_once`, as long as nobody keeps the parts.

    The pass is over when this returns; read the parts under the hooks that it was made under.

    Args:
        model: The model, with whatever hooks are on it.
        tokens: What it is run on.
        where: The positions.
        options: Of the model's forward pass; those of a whole text for none.
    """
    most = logits_at_once(model)
    if int(where.sum()) <= most:
        return [logits_at(model, tokens, where, **options)]
    return map(partial(logits_of, model), torch.split(states_at(model, tokens, where, (), **options), most))


def states_at(
    model: Model,
    tokens: PaddedTokens,
    where: Bool[Tensor, "batch pos"],
    hooks: Sequence[FwdHook] = (),
    **options: object,
) -> Float[Tensor, "n width"]:
    """What the unembedding reads at chosen positions, row after row; `logits_of` makes logits of it, a part at a time.

    Args:
        model: The model, with whatever hooks are on it.
        tokens: What it is run on.
        where: The positions; none for a pass that only hooks look at.
        hooks: Further hooks for this pass.
        options: Of the model's forward pass; those of a whole text for none.
    """
    found: list[Tensor] = []

    def take(tensor: Tensor, hook: object) -> Tensor:
        found.append(tensor[where.to(tensor.device)])
        return tensor[:1, :1]

    with hooked(model, [*hooks, ("unembed.hook_in", take)]):
        forward(model, tokens.ids, **(options or tokens.forward_options()))
    return found[-1]


def logits_of(
    model: Model, states: Float[Tensor, "n width"], hooks: Sequence[FwdHook] = ()
) -> Float[Tensor, "n d_vocab"]:
    """The logits that a model makes of what its unembedding reads, with whatever it does to them afterwards.

    Args:
        model: The model, with whatever hooks are on its logits.
        states: From `states_at`.
        hooks: Further hooks on its logits.
    """

    def put(tensor: Tensor, hook: object) -> Tensor:
        return states[None]

    # One token, whose state is replaced: the blocks need not see it.
    token = torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device)
    with unnoted(model), hooked(model, [*hooks, ("unembed.hook_in", put)]):
        if model.original_model not in _NEED_BLOCKS:
            try:
                with without_blocks(model):
                    skipped: Tensor = forward(model, token, use_cache=False)[0]
                return skipped
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):  # of another build
                _NEED_BLOCKS.add(model.original_model)
        logits: Tensor = forward(model, token, use_cache=False)[0]
    return logits
