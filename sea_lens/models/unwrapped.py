"""Passes without TransformerLens's wrappers where no hook looks: the same numbers to the bit, sooner.

A bridge puts a wrapper with hook points around every norm, attention, MLP and linear map. Where none of a wrapper's hook
points has a hook, all it does is take time: some 15 % of a pass over one token. Blocks keep their wrappers, so `resid_pre`,
`resid_post` and the sites outside the blocks can be hooked at no cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from operator import contains
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sea_lens.models.bridge import Model

FLAGS = ("use_hook_mlp_in", "use_attn_in", "use_split_qkv_input", "use_attn_result")
"""Of a bridge's configuration: hook points that only wrappers compute."""


@dataclass(frozen=True, eq=False)
class _Wrapper:
    """A wrapper inside a block.

    Attributes:
        holder: The children of the module that holds it.
        name: Its name there.
        wrapper: It.
        plain: The module that it wraps.
        own: All that runs in it and not in the plain module: where hooks may be.
        attributes: The attributes of each of these.
        hooks: The tables of hooks of these, which torch makes once for a module and only changes.
        first: Those of what runs before them, where TransformerLens has hooks that note what a wrapper needs.
        inside: The wrappers inside the plain module.
    """

    holder: dict[str, nn.Module | None]
    name: str
    wrapper: nn.Module
    plain: nn.Module
    own: tuple[nn.Module, ...]
    attributes: tuple[dict[str, Any], ...]
    hooks: tuple[Mapping[int, Any], ...]
    first: tuple[Mapping[int, Any], ...]
    inside: tuple[_Wrapper, ...]

    @classmethod
    def of(cls, holder: nn.Module, name: str, wrapper: nn.Module, plain: nn.Module) -> _Wrapper:
        """With what is in it."""
        inside = tuple(_inside(plain))
        # Wrappers inside the plain module are the wrapper's own as well: it may run them itself, so hooks in them count.
        not_own = set(plain.modules()) - {own for each in inside for own in each.own}
        own = tuple(module for module in wrapper.modules() if module not in not_own)
        hooks = tuple(table for m in own for table in (m._forward_hooks, m._backward_hooks, m._backward_pre_hooks))
        first = tuple(m._forward_pre_hooks for m in own)
        return cls(holder._modules, name, wrapper, plain, own, tuple(map(vars, own)), hooks, first, inside)

    @property
    def is_idle(self) -> bool:
        """Whether nothing looks at what it does."""
        # Asked for hundreds of wrappers in every pass, so without a loop of Python's own where nothing is found.
        if self.holder.get(self.name) is not self.wrapper or any(self.hooks):
            return False
        if any(map(contains, self.attributes, repeat("_hf_hook"))):  # of accelerate
            return False
        return not any(self.first) or all(_is_theirs(hook) for table in self.first for hook in table.values())


_CAN_GO: WeakKeyDictionary[nn.Module, tuple[_Wrapper, ...]] = WeakKeyDictionary()
"""By wrapped model: wrappers without which it gives the same numbers; tried once."""


@contextmanager
def unwrapped(model: Model) -> Iterator[None]:
    """Leaves out, inside the block, wrappers that no hook looks into. Hooks have to be on the model before it begins.

    On every model's first time it is tried, a kind of wrapper at a time, whether the results are the same to the bit. Kinds
    of which they are not stay, such as TransformerLens's LayerNorm.

    Args:
        model: A TransformerBridge. It is as before when the block ends.
    """
    if _has_flags(model):
        yield
        return
    wrapped = model.original_model
    if wrapped not in _CAN_GO:
        _CAN_GO[wrapped] = _those_that_can_go(model)
    with _without(_CAN_GO[wrapped]):
        yield


def forward(model: Model, tokens: Tensor, **options: object) -> Tensor:
    """A forward pass under the hooks that are on the model, without wrappers that no hook looks into."""
    with unwrapped(model):
        return model(tokens, **options)


def _has_flags(model: Model) -> bool:
    processed = getattr(model, "compatibility_mode", False) or getattr(model, "_weights_processed", False)
    return bool(processed) or any(getattr(model.cfg, flag, False) for flag in FLAGS)


@contextmanager
def _without(wrappers: Sequence[_Wrapper]) -> Iterator[None]:
    left_out: list[_Wrapper] = []
    pending = list(wrappers)
    while pending:
        each = pending.pop()
        if each.is_idle:  # what it holds is idle, too, and its plain module must not meet wrappers
            left_out.append(each)
            pending += each.inside
    for each in left_out:
        each.holder[each.name] = each.plain
    try:
        yield
    finally:
        for each in left_out:
            each.holder[each.name] = each.wrapper


def _plain(module: nn.Module) -> nn.Module:
    """What stands in the innermost of nested wrappers; a module that is none itself."""
    held = module._modules.get("_original_component")
    return module if held is None else _plain(held)


def _inside(module: nn.Module) -> Iterator[_Wrapper]:
    for name, child in module._modules.items():
        if child is None:
            continue
        plain = _plain(child)
        if plain is child:
            yield from _inside(child)
            continue
        yield _Wrapper.of(module, name, child, plain)


def _is_theirs(hook: object) -> bool:
    """Whether it is TransformerLens's own, which notes what a wrapper needs."""
    return str(getattr(hook, "__module__", "")).startswith("transformer_lens.")


@torch.no_grad()
def _those_that_can_go(model: Model) -> tuple[_Wrapper, ...]:
    wrappers = tuple(each for block in model.blocks for each in _inside(_plain(block)))
    with _silent(model):
        return _exact(model, wrappers)


@contextmanager
def _silent(model: Model) -> Iterator[None]:
    """Takes all hooks but TransformerLens's own off a model inside the block: no one is to see the passes of a trial."""
    silenced: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in {*model.modules(), *model.original_model.modules()}:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            if hooks:
                silenced.append((hooks, dict(hooks)))
                for key in [key for key, hook in hooks.items() if "fwd_hooks" in vars(module) or not _is_theirs(hook)]:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, whole in silenced:
            hooks.clear()
            hooks.update(whole)


def _exact(model: Model, wrappers: tuple[_Wrapper, ...]) -> tuple[_Wrapper, ...]:
    try:
        wanted = _results(model)
        if _are_same(model, wrappers, wanted):
            return wrappers
        kinds = {type(each.wrapper) for each in wrappers}
        exact = {kind for kind in kinds if _are_same(model, [w for w in wrappers if type(w.wrapper) is kind], wanted)}
        rest = tuple(each for each in wrappers if type(each.wrapper) in exact)
        return rest if _are_same(model, rest, wanted) else ()
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return ()  # an architecture that is run in another way


def _are_same(model: Model, left_out: Sequence[_Wrapper], wanted: Sequence[Tensor]) -> bool:
    with _without(left_out):
        found = _results(model)
    return all(
        torch.allclose(one, other, rtol=0, atol=0, equal_nan=True) for one, other in zip(found, wanted, strict=True)
    )


def _results(model: Model) -> list[Tensor]:
    """Logits of two texts, one of them padded on the left: in one pass, and a part after a cache."""
    vocabulary = getattr(model.original_model.config, "vocab_size", None) or 64
    tokens = torch.arange(2 * 12).reshape(2, 12).remainder(vocabulary).to(model.cfg.device)
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    whole = model(tokens, use_cache=False)
    start = model.original_model(tokens[:, :8], attention_mask=mask[:, :8], use_cache=True)
    if getattr(start, "past_key_values", None) is None:  # recurrent
        return [whole, start.logits]
    rest = model.original_model(tokens[:, 8:], attention_mask=mask, past_key_values=start.past_key_values)
    return [whole, start.logits, rest.logits]
