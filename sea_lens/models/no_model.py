"""What was given in place of a model, and how to get a model from it."""

from __future__ import annotations

from pathlib import Path

import torch

from sea_lens.errors import ModelMismatchError


def no_model_error(model: object) -> ModelMismatchError:
    """For what is neither a TransformerBridge nor a Hugging Face language model."""
    return ModelMismatchError(
        f"An editor acts in a TransformerBridge or in a Hugging Face language model, and {named(model)} was given. "
        f"{advice(model)}"
    )


def named(model: object) -> str:
    """What was given, by its kind."""
    if model is None:
        return "None"
    name = getattr(model, "__name__", "") if isinstance(model, type) else type(model).__name__
    return f"the class {name}" if isinstance(model, type) else f"a{'n' * (name[:1] in 'AEIOaeio')} {name}"


def advice(model: object) -> str:
    """How to get a TransformerBridge, from what was given in its place."""
    inside = next((name for name in ("module", "model") if _is_transformers(_attribute(model, name))), None)
    if isinstance(model, str | Path):
        return f"Load it first: sea_lens.load_model({str(model)!r})."
    if isinstance(model, type):
        return "Make a model first: sea_lens.load_model(name)."
    if callable(_attribute(model, "collective_rpc")):
        return "vLLM's engines are edited by sea_lens.serving.attach(llm, editor)."
    if _is_transformers(model):
        name = getattr(model.config, "name_or_path", "") or "its name"  # type: ignore[attr-defined]
        return f"Wrap it first: sea_lens.load_model({name!r}, hf_model=model, tokenizer=tokenizer)."
    if inside is not None:
        return f"Give the model in it, its .{inside}."
    return "Make one with sea_lens.load_model(name)."


def _is_transformers(model: object) -> bool:
    return isinstance(model, torch.nn.Module) and hasattr(model, "config")


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name, None)
    except Exception:  # a property of somebody else's, and all that is asked is what it might be
        return None
