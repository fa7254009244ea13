"""Plain Hugging Face models: where in their modules TransformerLens has its hook points, and hooks there.

A bridge's hook point sees the output of a module, or the input of one. So do PyTorch's own hooks, and an edit there is the
same edit. Nothing of TransformerLens is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import TypeIs

from sea_lens.errors import ModelMismatchError
from sea_lens.models.bridge import FwdHook, ModelInfo, plain_name
from sea_lens.models.sites import Site

ATTENTION = ("self_attn", "attn", "self_attention", "attention")
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
MLP = ("mlp", "feed_forward")
MLP_OUT = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2")
"""The names that transformers gives them; the first that is there."""

SITES = ("resid_pre", "attn.hook_z", "attn_out", "mlp.hook_post", "mlp_out", "resid_post", "unembed.hook_in")
"""The sites that a plain model has."""


@dataclass(frozen=True, eq=False)
class Place:
    """What stands for a hook point.

    Attributes:
        module: A module of the model.
        side: Whether the point sees what goes into it or what comes out.
    """

    module: nn.Module
    side: Literal["input", "output"]

    @classmethod
    def of(cls, module: nn.Module | None, side: Literal["input", "output"]) -> Place | None:
        """Of a module, if there is one."""
        return None if module is None else cls(module, side)

    def hook(self, act: Callable[..., Tensor | None]) -> RemovableHandle:
        """Sets a hook of TransformerLens's form, which returns None where it changes nothing."""
        if self.side == "output":

            def after(module: nn.Module, args: object, output: Any) -> Any:
                first = output[0] if isinstance(output, tuple) else output
                edited = act(first, hook=None)
                if edited is None:
                    return None
                return (edited, *output[1:]) if isinstance(output, tuple) else edited

            return self.module.register_forward_hook(after)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name = None if args else next(name for name, value in kwargs.items() if isinstance(value, Tensor))
            edited = act(args[0] if name is None else kwargs[name], hook=None)
            if edited is None:
                return None
            return ((edited, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: edited})

        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def is_plain(model: object) -> TypeIs[nn.Module]:
    """Whether a model is a language model of transformers, or one around it (PEFT's), and no TransformerBridge."""
    return (
        isinstance(model, nn.Module)
        and not hasattr(model, "original_model")
        and hasattr(model, "config")
        and callable(getattr(model, "get_output_embeddings", None))
    )


def plain_info(model: nn.Module) -> ModelInfo:
    """The facts of a plain model that editors must agree on.

    Raises:
        ModelMismatchError: If it has an encoder, or no blocks that can be found.
    """
    config = _text_config(model)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelMismatchError(
            f"{type(model).__name__} has an encoder and a decoder, and sea_lens works with models that write text from left "
            "to right. Give a decoder-only language model."
        )
    name = plain_name(str(getattr(model.config, "name_or_path", "") or type(model).__name__))
    return ModelInfo(name, len(_blocks(model)), int(config.hidden_size), "raw")


def places_of(model: nn.Module, sites: Sequence[Site]) -> dict[Site, Place]:
    """Where some sites lie.

    Raises:
        ModelMismatchError: If the model lacks one, or it cannot be told which module it is.
    """
    blocks = _blocks(model)
    found: dict[Site, Place] = {}
    for site in sites:
        if site.layer is None:
            unembedding = model.get_output_embeddings()  # type: ignore[operator]
            place = Place(unembedding, "input") if site.name == "unembed.hook_in" else None
        elif site.layer >= len(blocks):
            raise ModelMismatchError(f"The site {site} is beyond this model's {len(blocks)} layers.")
        else:
            place = place_inside(blocks[site.layer], site.name)
        if place is None:
            raise ModelMismatchError(
                f"In a plain {type(model).__name__} no module stands for {site}; sites that can be found are "
                f"{', '.join(SITES)}. Wrap the model for the others: sea_lens.load_model(name, hf_model=model, "
                "tokenizer=tokenizer)."
            )
        found[site] = place
    return found


@contextmanager
def hooked_plain(model: nn.Module, hooks: Sequence[FwdHook]) -> Iterator[None]:
    """As `points.hooked`, on a plain model."""
    places = places_of(model, [Site.of(name) for name, _ in hooks])
    handles: list[RemovableHandle] = []
    try:
        for name, hook in hooks:
            handles.append(places[Site.of(name)].hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def runner_of(model: nn.Module) -> nn.Module:
    """The module that runs the blocks. Every caller goes through it, also those that go around the outer modules' hooks."""
    return _runner_and_blocks(model)[0]


def _blocks(model: nn.Module) -> nn.ModuleList:
    return _runner_and_blocks(model)[1]


def _runner_and_blocks(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    found = find_blocks(model, getattr(_text_config(model), "num_hidden_layers", None))
    if found is None:
        raise ModelMismatchError(
            f"The blocks of a {type(model).__name__} cannot be found. Wrap the model: sea_lens.load_model(name, "
            "hf_model=model, tokenizer=tokenizer)."
        )
    return found


def find_blocks(model: nn.Module, n_layers: int | None) -> tuple[nn.Module, nn.ModuleList] | None:
    """The outermost list of as many modules as the model has layers, and whose it is; None where there is none."""
    for owner in model.modules():
        for each in owner.children():
            if isinstance(each, nn.ModuleList) and len(each) == n_layers:
                return owner, each
    return None


def place_inside(block: nn.Module, name: str) -> Place | None:
    """Where a site lies in a block; None where no module stands for it."""
    if name in ("resid_pre", "resid_post"):
        return Place(block, "input" if name == "resid_pre" else "output")
    attention, mlp = _child(block, ATTENTION), _child(block, MLP)
    if name == "attn.hook_z":
        return Place.of(_last_map(attention, ATTENTION_OUT), "input")
    if name == "mlp.hook_post":
        return Place.of(_last_map(mlp, MLP_OUT), "input")
    if name not in ("attn_out", "mlp_out") or _adds_inside(attention):
        return None
    # What a norm makes of it, where one stands before the sum.
    after = _child(block, ("post_feedforward_layernorm",)) is not None
    normed = "post_attention_layernorm" if name == "attn_out" else "post_feedforward_layernorm"
    return Place.of(_child(block, (normed,)) if after else attention if name == "attn_out" else mlp, "output")


def _adds_inside(attention: nn.Module | None) -> bool:
    """Whether a block's parts are given the residual stream to add to, as BLOOM's are."""
    return attention is not None and "residual" in inspect.signature(attention.forward).parameters


def _child(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    children = dict(module.named_children())
    return next((children[name] for name in names if name in children), None)


def _last_map(module: nn.Module | None, names: Sequence[str]) -> nn.Module | None:
    """The one module of a name, at any depth; None of a mixture of experts, which has one for each."""
    if module is None or any("expert" in path for path, _ in module.named_modules()):
        return None
    found = [each for path, each in module.named_modules() if path.rpartition(".")[2] in names]
    return found[0] if len(found) == 1 else None
