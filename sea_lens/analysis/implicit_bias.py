"""What massive tokens give to all others: they draw attention, and so act as a fixed bias (Sun et al., arXiv 2402.17762)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sea_lens.analysis.massive import TokenKind, kinds_of
from sea_lens.arguments import check_arguments
from sea_lens.errors import InputError
from sea_lens.models.bridge import FwdHook, Model, check_is_model, tokenizer_of
from sea_lens.models.hooks import states_at
from sea_lens.models.sites import Site
from sea_lens.models.tokens import PaddedTokens, check_context_length, token_ids
from sea_lens.results import Result

PARTS = ("hook_pattern", "hook_v", "hook_z")
"""Of an attention layer: what is read to tell its output apart."""


@dataclass(frozen=True, eq=False, repr=False)
class ImplicitBias(Result):
    """How much attention a kind of token draws, layer by layer, and what it gives.

    With attention p and values v, a head's output at query t is `z_t = b_t + r_t`, where `b_t` sums `p_tj v_j` over tokens of
    the kind and `r_t` over all others. The paper's claim is that `b_t` hardly depends on t: a bias.

    Attributes:
        table: One row per layer, over all queries after such a token: `attention` (their mean share of it over heads, texts
            and queries), `most` (of the head that has most), `norm` (mean of `|b| / (|b| + |r|)`), and the variance over the
            queries of a text of `b` (`bias_variance`) and of `r` (`rest_variance`), as means over heads and texts, both over
            the mean squared norm of `z`.
        kind: Whose attention: `first`, `first delimiter` or `both`.
        n: Number of texts.

    Example:
        >>> bias = sl.measure_implicit_bias(model, sl.neutral_texts(model)[:3])
        >>> bias.kind, list(bias.table)
        ('first', ['attention', 'most', 'norm', 'bias_variance', 'rest_variance'])
    """

    table: pd.DataFrame
    kind: str
    n: int


@torch.no_grad()
def measure_implicit_bias(model: Model, texts: Sequence[str], *, kind: TokenKind = "first") -> ImplicitBias:
    """Measures attention on the first token or the first delimiter, and how constant its contribution is.

    Args:
        model: A TransformerBridge with a tokenizer and `attn.hook_pattern`, `attn.hook_v` and `attn.hook_z`.
        texts: What to run, one at a time.
        kind: Which tokens: `first`, `first delimiter`, or `both`.

    Returns:
        A result whose `table` has one row per layer, with shares of attention, of norms and of variance.

    Raises:
        InputError: If there are no texts, or none of them has such a token with others after it.
        ModelMismatchError: If the model has no such hook points (recurrent layers have none).

    Example:
        >>> bias = sl.measure_implicit_bias(model, sl.neutral_texts(model)[:3])
        >>> int(bias.table["attention"].idxmax())  # the layer where the first token draws the most
        1
    """
    check_arguments(measure_implicit_bias, locals())
    check_is_model(model)
    if isinstance(texts, str) or not texts:
        raise InputError("Give a list of texts, with at least one.")
    if kind not in get_args(TokenKind):
        raise InputError(f"kind is one of {', '.join(get_args(TokenKind))}, and {kind!r} was given.")
    rows = [token_ids(model, text) for text in texts]
    check_context_length(model, [len(row) for row in rows], [f"Text {index}" for index in range(len(rows))])
    tokenizer, layers = tokenizer_of(model), range(model.cfg.n_layers)
    wanted = {"first", "first delimiter"} if kind == "both" else {kind}
    found: dict[int, list[Float[Tensor, " measured"]]] = {layer: [] for layer in layers}
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(tensor: Tensor, hook: object) -> None:
            kept[name] = tensor

        return hook

    def measuring(layer: int, chosen: Bool[Tensor, " pos"]) -> Callable[..., None]:
        def hook(tensor: Tensor, hook: object) -> None:
            pattern, values = (kept[name][0].double().cpu() for name in ("hook_pattern", "hook_v"))
            found[layer].append(_measured(pattern, values, tensor[0].double().cpu(), chosen))

        return hook

    for row in rows:
        kinds = kinds_of([tokenizer.decode([token]) for token in row])
        chosen = torch.tensor([each in wanted for each in kinds])
        if not chosen.any() or int(chosen.nonzero()[0]) >= len(row) - 2:
            continue
        tokens, hooks = PaddedTokens.of(model, [row]), list[FwdHook]()
        for layer in layers:
            names = [Site(layer, f"attn.{part}").check(model) for part in PARTS]
            # In the order in which a pass comes to them; what is kept is of one layer at a time.
            hooks += [
                (names[0], keep("hook_pattern")),
                (names[1], keep("hook_v")),
                (names[2], measuring(layer, chosen)),
            ]
        with model.hooks(fwd_hooks=hooks):
            states_at(model, tokens, torch.zeros_like(tokens.mask))
    n = len(found[0])
    if not n:
        raise InputError(f"No text has a token of the kind {kind!r} with two others after it. Give longer texts.")
    columns = ["attention", "most", "norm", "bias_variance", "rest_variance"]
    means = {layer: torch.stack(own).mean(0).tolist() for layer, own in found.items()}
    return ImplicitBias(pd.DataFrame.from_dict(means, orient="index", columns=columns).rename_axis("layer"), kind, n)


def _measured(
    pattern: Float[Tensor, "head query pos"],
    values: Float[Tensor, "pos kv_head d_head"],
    z: Float[Tensor, "query head d_head"],
    chosen: Bool[Tensor, " pos"],
) -> Float[Tensor, " measured"]:
    bias, rest = parts_of_output(pattern, values, chosen)
    queries = torch.arange(len(chosen)) > int(chosen.nonzero()[0])
    queries &= ~chosen
    mass = pattern[:, queries][..., chosen].sum(-1).mean(1)  # by head
    b, r = bias[queries], rest[queries]
    lengths = [torch.linalg.vector_norm(part, dim=-1) for part in (b, r)]
    norm = (lengths[0] / (lengths[0] + lengths[1]).clamp_min(1e-300)).mean()
    scale = z[queries].square().sum(-1).mean(0).clamp_min(1e-300)
    spread = [((part - part.mean(0)).square().sum(-1).mean(0) / scale).mean() for part in (b, r)]
    return torch.stack([mass.mean(), mass.max(), norm, *spread])


def parts_of_output(
    pattern: Float[Tensor, "head query pos"],
    values: Float[Tensor, "pos kv_head d_head"],
    chosen: Bool[Tensor, " pos"],
) -> tuple[Float[Tensor, "query head d_head"], Float[Tensor, "query head d_head"]]:
    """What chosen tokens and all others give to each head's output; both together are the output."""
    heads = values.repeat_interleave(len(pattern) // values.shape[1], dim=1)
    both = [torch.einsum("hqk,khd->qhd", pattern * on.to(pattern), heads) for on in (chosen, ~chosen)]
    return both[0], both[1]
