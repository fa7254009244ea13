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

from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.bridge import FwdHook, ModelInfo, plain_name
from sea_lens.models.no_model import named
from sea_lens.models.sites import Site

ATTENTION = ("self_attn", "attn", "self_attention", "attention")
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
MLP = ("mlp", "feed_forward")
MLP_OUT = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2")
"""The names that transformers gives them; the first that is there."""

BOTH_WAYS = ("xlnet", "cpmant")
"""Kinds that transformers counts among those that write text, and whose tokens see those after them."""

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


def to_wrap(model: object) -> nn.Module:
    """What a TransformerBridge is made around: a Hugging Face model, and of PEFT's the model with the adapters in it.

    Raises:
        InputError: If it is none.
        ModelMismatchError: If it has an encoder, reads text in both directions, is compiled, or puts virtual tokens before
            every text.
    """
    if not is_plain(model):
        raise InputError(
            f"hf_model= takes a Hugging Face language model, and {named(model)} was given. Load one with transformers' "
            "AutoModelForCausalLM.from_pretrained(name), or leave hf_model out."
        )
    _check_left_to_right(model)
    _check_not_compiled(model)
    check_no_virtual_tokens(model)
    inside = getattr(model, "get_base_model", None)
    return inside() if callable(inside) else model


def plain_info(model: nn.Module) -> ModelInfo:
    """The facts of a plain model that editors must agree on.

    Raises:
        ModelMismatchError: If it has an encoder, reads text in both directions, was compiled, or has no blocks that can be
            found.
    """
    _check_left_to_right(model)
    _check_not_compiled(model)
    name = plain_name(str(getattr(model.config, "name_or_path", "") or type(model).__name__))
    return ModelInfo(name, len(_blocks(model)), int(_text_config(model).hidden_size), "raw")


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
            place = Place.of(unembedding, "input") if site.name == "unembed.hook_in" else None
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


def check_no_virtual_tokens(model: nn.Module) -> None:
    """Refuses a model that puts tokens of its own before every text, for an editor that must know where its tokens stand.

    Raises:
        ModelMismatchError: If it is PEFT's, after prompt tuning, prefix tuning or p-tuning.
    """
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise ModelMismatchError(
            f"{type(config).__name__.removesuffix('Config')} puts {getattr(config, 'num_virtual_tokens', 'its')} virtual "
            "tokens before every text, so positions and prompts are not those that editors are fitted on. Attach "
            'editor.at_positions("all"), or take a model without them.'
        )


def _check_not_compiled(model: nn.Module) -> None:
    """Refuses what `torch.compile` made one graph of. Blocks that are compiled one by one run hooks as they should.

    Raises:
        ModelMismatchError: If it is, from the outside in to what runs the blocks.
    """
    runner = runner_of(model)
    for each in model.modules():
        whole = "_orig_mod" in each._modules or getattr(each, "_compiled_call_impl", None) is not None
        if whole or hasattr(vars(each).get("forward"), "_torchdynamo_orig_callable"):
            raise ModelMismatchError(
                f"This {type(model).__name__} is compiled (torch.compile), and a graph runs no hooks that come after it. "
                "Give the model as it was before."
            )
        if each is runner:
            return


def _check_left_to_right(model: nn.Module) -> None:
    """Refuses a model in which a token sees those after it.

    Raises:
        ModelMismatchError: If it has an encoder, or its tokens do.
    """
    why = "has an encoder and a decoder" if getattr(_text_config(model), "is_encoder_decoder", False) else None
    if why is None and _reads_both_ways(model):
        why = "reads text in both directions"
    if why is not None:
        raise ModelMismatchError(
            f"{type(model).__name__} {why}, and sea_lens works with models that write text from left to right. Give a "
            "decoder-only language model."
        )


def _reads_both_ways(model: nn.Module) -> bool:
    """By what its attention says of itself, or else by what models of its kind are for."""
    runner, blocks = _runner_and_blocks(model)
    said = {each.is_causal for each in blocks.modules() if isinstance(getattr(each, "is_causal", None), bool)}
    if said:
        return True not in said
    if getattr(runner, "is_decoder", None) is False:  # T5's encoder
        return True
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    config = _text_config(model)
    kind, is_decoder = getattr(config, "model_type", None), getattr(config, "is_decoder", False)
    return (kind in MASKED and not (is_decoder or getattr(config, "causal", False))) or kind in BOTH_WAYS


def runner_of(model: nn.Module) -> nn.Module:
    """The module that runs the blocks. Every caller goes through it, also those that go around the outer modules' hooks."""
    return _runner_and_blocks(model)[0]


def _blocks(model: nn.Module) -> nn.ModuleList:
    return _runner_and_blocks(model)[1]


def _runner_and_blocks(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    n_layers = getattr(_text_config(model), "num_hidden_layers", None)
    # A model that sees has other blocks as well, and perhaps as many.
    decoder = getattr(model, "get_decoder", lambda: None)()
    if isinstance(decoder, nn.Module) and decoder is not model:
        found = find_blocks(decoder, n_layers)
        if found is not None:
            return decoder, found[1]
    found = find_blocks(model, n_layers)
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
    inside = [] if module is None else list(_inside(module))
    if any("expert" in name for name, _ in inside):
        return None
    found = [each for name, each in inside if name in names]
    return found[0] if len(found) == 1 else None


def _inside(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules in one, by their own names; but not what is in an adapter, whose name anyone may choose."""
    for name, child in module.named_children():
        yield name, child
        if "base_layer" not in child._modules:  # a map with PEFT's adapters around it
            yield from _inside(child)
