"""The second moment of MLP keys on neutral text: what an edit of knowledge weighs against its own keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.arguments import as_folder, check_arguments
from sea_lens.cache import load_tensors, save_tensors
from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.bridge import FwdHook, Model, check_is_model
from sea_lens.models.down_projection import check_key_width
from sea_lens.models.neutral import neutral_texts
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.sites import Site, check_layers
from sea_lens.models.tokens import PaddedTokens, all_token_ids
from sea_lens.models.unwrapped import forward

FORMAT = "sea_lens.key_moments/1"
SAMPLE = 1024
"""Tokens whose keys are kept, to tell how much of an edit acts on neutral text."""


@dataclass(frozen=True, eq=False)
class KeyMoments:
    """`E[key key^T]` by layer, over the tokens of neutral texts.

    Attributes:
        moments: By layer, in float64.
        samples: By layer, the keys of some of the tokens, evenly spread, in float32.
        n_tokens: How many tokens there were. Of fewer tokens than keys are wide, the moment is singular.

    Example:
        >>> moments = sl.collect_key_moments(model, [1])
        >>> moments.n_tokens > 100, moments.samples[1].shape[1]
        (True, 384)
    """

    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    samples: Mapping[int, Float[Tensor, "n d_mlp"]]
    n_tokens: int

    def __repr__(self) -> str:
        widths = sorted({len(moment) for moment in self.moments.values()})
        return f"KeyMoments(layers {list(self.moments)}, width {widths}, {self.n_tokens} tokens)"

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file."""
        as_folder(path, "path")
        tensors = {f"moment.{layer}": moment for layer, moment in self.moments.items()}
        tensors |= {f"sample.{layer}": sample for layer, sample in self.samples.items()}
        save_tensors(tensors, Path(path), {"format": FORMAT, "n_tokens": str(self.n_tokens)})

    @classmethod
    def load(cls, path: str | Path) -> KeyMoments:
        """What `save` wrote, to the bit.

        Raises:
            FileFormatError: If the file is missing, truncated or something else.
        """
        as_folder(path, "path")
        tensors, told = load_tensors(Path(path))
        try:
            if told["format"] != FORMAT:
                raise KeyError(told["format"])
            layers = [int(name.removeprefix("moment.")) for name in tensors if name.startswith("moment.")]
            moments, samples = (
                {layer: tensors[f"{what}.{layer}"] for layer in sorted(layers)} for what in ("moment", "sample")
            )
            return cls(moments, samples, int(json.loads(told["n_tokens"])))
        except (KeyError, ValueError) as error:
            raise FileFormatError(f"{path} does not hold moments of keys ({FORMAT}).") from error


@torch.no_grad()
def collect_key_moments(
    model: Model,
    layers: Sequence[int],
    texts: Sequence[str] | None = None,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> KeyMoments:
    """The second moment of MLP keys over all tokens of texts, the first one included.

    The authors of MEMIT take 100,000 samples of Wikipedia. Give as much neutral text as you can: some ten tokens for each of
    the key's coordinates at the least.

    Example:
        >>> sl.collect_key_moments(model, [1, 2]).moments[1].shape
        torch.Size([384, 384])

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        layers: Of which MLPs; negative ones count from the end.
        texts: Neutral texts, each cut to the model's context; None for `sl.neutral_texts(model)`.
        batch_size: Texts in one forward pass.
        progress: Whether to show a progress bar.

    Returns:
        By layer, the second moment `[width, width]` of its keys, and a sample of the keys `[n, width]`.

    Raises:
        InputError: If there are no texts.
        ModelMismatchError: If a layer has no MLP with keys, as a mixture of experts.
    """
    check_arguments(collect_key_moments, locals())
    check_is_model(model)
    chosen = check_layers(list(layers), model.cfg.n_layers)
    sites = [Site(layer, "mlp.hook_post") for layer in chosen]
    for layer in chosen:
        check_key_width(model, layer)
    given = neutral_texts(model) if texts is None else list(texts)
    rows = [row[: model.cfg.n_ctx] for row in all_token_ids(model, given) if row] if given else []
    if not rows:
        raise InputError(
            "Keys are averaged over neutral texts, and there are none in this model's words. Give `texts`."
        )
    n_tokens = sum(map(len, rows))
    every = -(-n_tokens // SAMPLE)
    moments: dict[int, Tensor] = {}
    samples: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    size, _ = how_to_run(model, None, batch_size, share_prefix=False, longest=max(map(len, rows)))
    stop = {} if max(chosen) + 1 >= model.cfg.n_layers else {"stop_at_layer": max(chosen) + 1}
    rows.sort(key=len, reverse=True)
    seen = 0

    def adding(layer: int, mask: Tensor) -> FwdHook:
        def add(tensor: Tensor, hook: object) -> None:
            keys = tensor[mask.to(tensor.device)].float()
            product = (keys.T.double() @ keys.double()) if keys.device.type == "cpu" else (keys.T @ keys).double()
            moments[layer] = moments[layer] + product.cpu() if layer in moments else product.cpu()
            samples[layer].append(keys[-seen % every :: every].cpu())

        return Site(layer, "mlp.hook_post").hook_name, add

    with tqdm(total=len(rows), desc="keys", unit="text", disable=not progress) as bar:
        for start in range(0, len(rows), size):
            tokens = PaddedTokens.of(model, rows[start : start + size])
            with model.hooks(fwd_hooks=[adding(layer, tokens.mask) for layer in chosen]), telling(model, None):
                forward(model, tokens.ids, **tokens.forward_options(), **stop)
            seen += int(tokens.mask.sum())
            bar.update(len(tokens.ids))
    for site in sites:
        if site.layer not in moments:
            raise InputError(f"No pass of this model reaches {site}, so there are no keys to average.")
    return KeyMoments(
        {layer: moments[layer] / n_tokens for layer in chosen},
        {layer: torch.cat(samples[layer]) for layer in chosen},
        n_tokens,
    )
