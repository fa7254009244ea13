"""The little of TransformerLens that the rest stands on: what a model is, hook names, tokens, padding.

Tokens are made, padded and masked here and nowhere else, because the last position must come from lengths (a pad token
may equal the end token) and a left-padded batch without a mask is silently wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sea_lens.errors import InputError, ModelMismatchError

UNKNOWN_MODEL = "unknown model"
"""Stands in a description for the name of a model that only its sizes are known of."""

TEXTS_AT_ONCE = 1000
"""Texts that a tokenizer is given together, of each of which it notes more than its tokens."""

FwdHook = tuple[str, Callable[..., Tensor | None]]
"""A hook name and the function TransformerLens calls there as `fn(tensor, hook=hook_point)`."""


@runtime_checkable
class Tokenizer(Protocol):
    """What we use of a Hugging Face tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    @property
    def all_special_ids(self) -> list[int]: ...

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: Literal[False], add_generation_prompt: bool
    ) -> str: ...


@runtime_checkable
class ModelConfig(Protocol):
    """What we read of `model.cfg`."""

    n_layers: int
    d_model: int
    n_ctx: int
    device: torch.device | str | None
    default_prepend_bos: bool
    normalization_type: str | None
    model_name: str


@runtime_checkable
class Model(Protocol):
    """What we use of a `transformer_lens.model_bridge.TransformerBridge`."""

    @property
    def cfg(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def hook_dict(self) -> Mapping[str, object]: ...

    @property
    def blocks(self) -> Iterable[torch.nn.Module]: ...

    def parameters(self) -> Iterable[Tensor]: ...

    def hooks(self, fwd_hooks: list[FwdHook]) -> AbstractContextManager[object]: ...

    def generate(self, input: Tensor, **options: object) -> Tensor: ...

    def __call__(self, input: Tensor, **options: object) -> Tensor: ...


@dataclass(frozen=True)
class ModelDescription:
    """The facts of a model that activations and editors must agree on.

    Attributes:
        name: The model's name; the folder's name for a local folder.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        weights: `"raw"`, or `"layernorm folded"` after `enable_compatibility_mode()` on a LayerNorm model, where
            `resid_post` holds other values. (RMSNorm models keep theirs and stay `"raw"`.)
    """

    name: str
    n_layers: int
    d_model: int
    weights: str

    @classmethod
    def of(cls, model: Model) -> ModelDescription:
        """Reads the description off a model."""
        cfg = model.cfg
        name = Path(cfg.model_name).name if Path(cfg.model_name).is_dir() else cfg.model_name
        folded = bool(getattr(model, "_weights_processed", False)) and (cfg.normalization_type or "").startswith("LN")
        return cls(name, cfg.n_layers, cfg.d_model, "layernorm folded" if folded else "raw")


def weights_fingerprint(model: Model) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over shape, dtype and first values of every parameter.

    Tells models of one name apart: checkpoints of a training run, or one model in two precisions.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        first = parameter.detach().flatten()[:64].float().cpu()
        digest.update(f"{tuple(parameter.shape)} {parameter.dtype} {first.tolist()}".encode())
    return digest.hexdigest()[:16]


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ModelMismatchError: If the model was made without one.
    """
    if model.tokenizer is None:
        raise ModelMismatchError(
            "This model has no tokenizer, so text cannot be given to it. Boot it with "
            "TransformerBridge.boot_transformers(..., tokenizer=...), or use Activations.from_tensors."
        )
    return model.tokenizer


def act_name(site: str, layer: int) -> str:
    """TransformerLens's name for `site` at `layer`, whatever the model."""
    # Imported late: transformer_lens takes seconds to import, which `import sea_lens` need not cost.
    from transformer_lens.utilities import get_act_name

    return str(get_act_name(site, layer))


def hook_name(model: Model, site: str, layer: int) -> str:
    """TransformerLens's name for `site` at `layer`, after checking that the model has it.

    Raises:
        ModelMismatchError: If the model has no such layer, or its architecture no such site.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise ModelMismatchError(
            f"The model has layers 0 to {model.cfg.n_layers - 1}, and layer {layer} was asked for. "
            "Layers are counted from 0; negative ones are not taken."
        )
    prefix = f"blocks.{layer}.hook_"  # sites inside attention or the MLP are not of width d_model, and are not taken
    name = act_name(site, layer)
    if not name.startswith(prefix) or name not in model.hook_dict:
        sites = sorted(key.removeprefix(prefix) for key in model.hook_dict if key.startswith(prefix))
        raise ModelMismatchError(f"This architecture has no site {site!r} ({name}). It has: {', '.join(sites)}.")
    return name


def check_layers(layers: Iterable[int] | None, n_layers: int) -> list[int]:
    """The layers asked for, sorted and without repeats; all of them for `None`.

    Raises:
        ModelMismatchError: If one does not exist.
        InputError: If there are none.
    """
    chosen = sorted(set(range(n_layers) if layers is None else layers))
    unknown = [layer for layer in chosen if not 0 <= layer < n_layers]
    if unknown:
        raise ModelMismatchError(
            f"Layers {unknown} do not exist: this model has layers 0 to {n_layers - 1}, counted from 0."
        )
    if not chosen:
        raise InputError("No layers were given. Leave `layers` out for all of them.")
    return chosen


def named_layers(name: str, n_layers: int) -> list[int]:
    """Layers out of `all`, `first:N`, `last:N` or a list such as `3,5,10-20`.

    Raises:
        InputError: If it is none of these, or N is more than there are.
        ModelMismatchError: If a layer in the list does not exist.
    """
    side, _, count = name.partition(":")
    try:
        if name == "all":
            return list(range(n_layers))
        if side in ("first", "last"):
            if not 1 <= int(count) <= n_layers:
                raise InputError(f"{name} was asked for, and the model has {n_layers} layers. Ask for 1 to that many.")
            return list(range(n_layers))[: int(count)] if side == "first" else list(range(n_layers))[-int(count) :]
        spans = [tuple(map(int, part.split("-"))) for part in name.split(",")]
        if any(len(span) > 2 or span[0] > span[-1] for span in spans):
            raise ValueError("a span has two ends, the lower one first")
        chosen = {layer for span in spans for layer in range(span[0], span[-1] + 1)}
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"Layers are all, first:N, last:N or a list such as 3,5,10-20, not {name!r}.") from error
    return check_layers(chosen, n_layers)


def join(prompt: str, completion: str) -> str:
    """Prompt and completion as one text, with a space between them unless one of them brings white space."""
    if not prompt or not completion or prompt[-1].isspace() or completion[0].isspace():
        return prompt + completion
    return f"{prompt} {completion}"


def token_ids(model: Model, text: str) -> list[int]:
    """Token ids of a text, with the beginning-of-sequence token exactly once where the model wants one."""
    return all_token_ids(model, [text])[0]


def all_token_ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """`token_ids` of many texts: a fast tokenizer splits a list of them over the machine's cores."""
    tokenizer = tokenizer_of(model)
    rows: list[list[int]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        rows += tokenizer(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if model.cfg.default_prepend_bos and bos is not None:
        rows = [ids if ids[:1] == [bos] else [bos, *ids] for ids in rows]
    return rows


@dataclass(frozen=True)
class TokenizedAnswer:
    """A prompt with its completion, tokenised as one text.

    Attributes:
        ids: Token ids of the whole text.
        answer_start: Index of the completion's first token; `len(ids)` for an empty completion.
    """

    ids: list[int]
    answer_start: int

    @classmethod
    def of(cls, model: Model, prompt: str, completion: str) -> TokenizedAnswer:
        """Tokenises prompt and completion together, as the model would read them."""
        return cls.all_of(model, [(prompt, [completion])])[0][0]

    @classmethod
    def all_of(cls, model: Model, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[TokenizedAnswer]]:
        """Tokenises prompts, each with each of its completions."""
        texts = [
            text for prompt, completions in asked for text in (prompt, *(join(prompt, own) for own in completions))
        ]
        rows, found = iter(all_token_ids(model, texts)), []
        for _, completions in asked:
            before, answers = next(rows), []
            for ids in islice(rows, len(completions)):
                shared = 0
                while shared < min(len(before), len(ids)) and before[shared] == ids[shared]:
                    shared += 1
                answers.append(cls(ids, shared))
            found.append(answers)
        return found


@dataclass(frozen=True)
class PaddedTokens:
    """A batch of token rows of different lengths as one rectangle.

    Attributes:
        ids: Token ids, `[batch, pos]`.
        mask: True where a token is real, `[batch, pos]`.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]

    @classmethod
    def of(cls, model: Model, rows: Sequence[Sequence[int]], side: Literal["left", "right"] = "right") -> PaddedTokens:
        """Pads rows on one side, on the model's device.

        Raises:
            InputError: If a row is empty.
        """
        if not rows or not all(rows):
            raise InputError("A text came out as no tokens at all. Give every prompt at least one token.")
        length = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool)
        if model.tokenizer is not None:
            pad = model.tokenizer.pad_token_id
            ids += pad if pad is not None else model.tokenizer.eos_token_id or 0
        for index, row in enumerate(rows):
            columns = slice(length - len(row), length) if side == "left" else slice(0, len(row))
            ids[index, columns] = torch.tensor(row)
            mask[index, columns] = True
        return cls(ids.to(model.cfg.device), mask.to(model.cfg.device))

    def forward_options(self) -> dict[str, object]:
        """Keyword arguments with which a forward pass is exact for either padding side and keeps nothing."""
        return {
            "attention_mask": self.mask.long(),
            "position_ids": (self.mask.long().cumsum(-1) - 1).clamp(min=0),
            "use_cache": False,
        }


def check_context_length(model: Model, lengths: Sequence[int], names: Sequence[str], room: int = 0) -> None:
    """Refuses texts that do not fit the model's context with `room` tokens to spare.

    Raises:
        InputError: Naming the longest offender.
    """
    longest = max(range(len(lengths)), key=lambda index: lengths[index])
    if lengths[longest] + room > model.cfg.n_ctx:
        spare = f" and {room} new tokens are asked for" if room else ""
        raise InputError(
            f"{names[longest]} is {lengths[longest]} tokens long{spare}, but the model's context is {model.cfg.n_ctx}. "
            "Shorten or drop such prompts; they are not cut silently."
        )
