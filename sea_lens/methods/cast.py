"""CAST's condition: which prompts an editor edits, fitted on labelled prompts.

Source: Lee et al., *Programming Refusal with Conditional Activation Steering* (arXiv 2409.05907), by its code
(`IBM/activation-steering`, read); the paper was not read. What it steers with is any editor here: `editor.when(...)`.

Departures from the code. The condition vector is read and compared at one and the same site, where the code takes it at a
block's output and compares it at the block's input. Every row of a batch has its own condition, where the code looks at row
0 and keeps the answer in a class. Thresholds are tried between all values that occur, where the code steps by 0.01 from 0 to
1. And what a condition is worth is measured on prompts that it was not fitted on, where the code reports the greatest F1.

The similarity of the code is left as an option. On prompts of the embedded world (60 about homes and 60 about pets, half held
out, means over tokens, seed 0) its F1 is 0.71, where editing every prompt has 0.67 and the plain cosine 1.00.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.editing.conditions import PromptToken, WhenAligned, prompt_states, similarities
from sea_lens.editing.sparing import NotMassive
from sea_lens.errors import InputError
from sea_lens.models.bridge import FwdHook, Model, check_is_model
from sea_lens.models.hooks import states_at
from sea_lens.models.passes import tracked
from sea_lens.models.sinks import find_sinks
from sea_lens.models.sites import Site, Sites, labels_of, model_sites
from sea_lens.models.tokens import PaddedTokens, all_token_ids, check_context_length
from sea_lens.results import Result
from sea_lens.statistics import Proportion

LEAST = 4
"""Prompts of a kind: two to fit on, and two to hold out."""


@dataclass(frozen=True, eq=False, repr=False)
class Condition(Result):
    """A condition on prompts, and what it is worth at every site that was tried.

    Attributes:
        table: By site, best first: the `threshold` and on which `side` of it a prompt is edited, `f1` on the half of the
            prompts that it was fitted on, and on the other half `precision` (of the prompts that it edits, the share that
            should be) and `recall` (of those that should be, the share that it edits), with Wilson intervals `_low` to
            `_high`, and `f1_held_out`. A condition that edits no prompt has no precision.
        site: The best one, by `f1`.
        direction: Its condition vector, of length 1.
        threshold: Its threshold.
        below: Whether a prompt is edited below it.
        token: What stands for a prompt.
        projected: Whether its similarity is the one of CAST's code.
        first: Whether a text's first token is left out of the mean, as an attention sink.
        limit: Norm above which a token is left out; None for none.
        n_when: Prompts to be edited, of the held-out half.
        n_unless: Prompts to be left alone, of the held-out half.

    Example:
        >>> when = [f"<plain> Q {fact.entity} home A" for fact in world.held_out[:40:4]]
        >>> unless = [f"<plain> Q {fact.entity} pet A" for fact in world.held_out[:40:4]]
        >>> condition = sl.fit_condition(model, when, unless, layers=[0, 1])
        >>> condition.site, condition.n_when
        ('blocks.0.hook_resid_post', 5)
    """

    table: pd.DataFrame
    site: str
    direction: Sequence[float]
    threshold: float
    below: bool
    token: PromptToken
    projected: bool
    first: bool
    limit: float | None
    n_when: int
    n_unless: int
    shown: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", tuple(self.direction))  # a file has a list

    @property
    def where(self) -> WhenAligned:
        """The best one, for `editor.when`."""
        limits = () if self.limit is None else ((self.site, self.limit),)
        sparing = NotMassive(self.first, limits) if self.first or limits else None
        direction = torch.tensor(self.direction)
        return WhenAligned(self.site, direction, self.threshold, self.below, self.token, self.projected, sparing)


@torch.no_grad()
def fit_condition(
    model: Model,
    when: Sequence[str],
    unless: Sequence[str],
    *,
    layers: Sites = None,
    token: PromptToken = "mean",
    published: bool = False,
    seed: int = 0,
    batch_size: int = 32,
) -> Condition:
    """Fits a condition vector, its threshold and its layer, on prompts that should be edited and prompts that should not.

    Source: CAST, Lee et al., ICLR 2025 (arXiv 2409.05907).

    Half of the prompts of each kind, drawn by the seed, are fitted on: the vector is the unit difference of their means, and
    of all sites, sides and thresholds between similarities the one of greatest F1 is taken, at the widest gap between
    them. The other half tells what it is worth. Attention sinks are left out of means, which they would rule.

    Example:
        >>> when = [f"<plain> Q {fact.entity} home A" for fact in world.held_out[:40:4]]
        >>> unless = [f"<plain> Q {fact.entity} pet A" for fact in world.held_out[:40:4]]
        >>> condition = sl.fit_condition(model, when, unless, layers=[0])
        >>> condition.site, condition.n_when, condition.n_unless
        ('blocks.0.hook_resid_post', 5, 5)
        >>> conditional = editor.without_layers([0]).when(condition.where)  # which edits after the condition's site

    Args:
        model: A TransformerBridge with a tokenizer.
        when: Prompts that should be edited, as the model will read them (in a chat template, where it has one).
        unless: Prompts that should be left alone. Four of each kind at least; some fifty for intervals that say something.
        layers: Layers to read at, or sites by name; all for None. An editor's first edit must not come before the site.
        token: `mean` over the prompt's tokens, or the `last` of them.
        published: Whether vector and similarity are those of CAST's code: the first principal component of pairs (here in the
            order of the draw) about their midpoints, and the cosine with `tanh` of the projection, which has next to no
            sign, so that prompts opposite to the vector are edited too.
        seed: Of the halves.
        batch_size: Prompts in one forward pass.

    Returns:
        The condition for `Editor.when`, and how well it tells held-out prompts apart at every site that was tried.

    Raises:
        InputError: If there are fewer than four prompts of a kind, or no similarity tells two of them apart.
        ModelMismatchError: If the model lacks a layer or a site.
    """
    check_arguments(fit_condition, locals())
    check_is_model(model)
    for name, prompts in (("when", when), ("unless", unless)):
        if isinstance(prompts, str) or len(prompts) < LEAST:
            raise InputError(f"{name} is a list of {LEAST} prompts at least: half are fitted on, half are held out.")
    sites = model_sites(model, layers, "resid_post")
    sinks = None if token == "last" else NotMassive.of(find_sinks(model))
    states = _states(model, [*when, *unless], sites, token, sinks, batch_size)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(prompts), generator=generator) for prompts in (when, unless)]
    fitting, held_out = [order[: len(order) // 2] for order in orders], [order[len(order) // 2 :] for order in orders]
    rows, found = [], []
    for site, label in zip(sites, labels_of(sites), strict=True):
        positive, negative = states[site][: len(when)], states[site][len(when) :]
        sides = positive[fitting[0]], negative[fitting[1]]
        direction = _first_component(*sides) if published else _mean_difference(*sides)
        if direction is None:
            continue
        ups, downs = (similarities(side, direction, projected=published) for side in (positive, negative))
        best = _best_threshold(ups[fitting[0]], downs[fitting[1]])
        if best is None:
            continue
        f1, gap, threshold, below = best
        worth = _worth(ups[held_out[0]], downs[held_out[1]], threshold, below)
        rows.append({"layer": label, "threshold": threshold, "side": "below" if below else "above", "f1": f1, **worth})
        found.append((f1, gap, site, direction, threshold, below))
    if not found:
        raise InputError(
            "All prompts have one state at every site, so no condition tells them apart. Give other prompts."
        )
    order = sorted(range(len(found)), key=lambda index: found[index][:2], reverse=True)
    _, _, site, direction, threshold, below = found[order[0]]
    table = pd.DataFrame([rows[index] for index in order]).set_index("layer")
    return Condition(
        table,
        site.hook_name,
        tuple(direction.tolist()),
        threshold,
        below,
        token,
        published,
        sinks is not None and sinks.first,
        None if sinks is None else dict(sinks.limits).get(site.hook_name),
        len(held_out[0]),
        len(held_out[1]),
    )


def _states(
    model: Model,
    prompts: Sequence[str],
    sites: Sequence[Site],
    token: PromptToken,
    sinks: NotMassive | None,
    batch_size: int,
) -> dict[Site, Float[Tensor, "n width"]]:
    """What stands for each prompt at each site, as a condition reads it."""
    rows = all_token_ids(model, prompts)
    check_context_length(model, list(map(len, rows)), [f"Prompt {number}" for number in range(len(rows))])
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    with tracked(model) as passes:

        def reader(site: Site) -> FwdHook:
            def read(tensor: Tensor, hook: object) -> None:
                assert passes.current is not None
                found[site].append(prompt_states(site, site.read(tensor), passes.current, token, sinks).cpu())

            return site.hook_name, read

        hooks = [reader(site) for site in sites]
        for start in range(0, len(order), batch_size):
            tokens = PaddedTokens.of(model, [rows[index] for index in order[start : start + batch_size]])
            nothing = torch.zeros_like(tokens.mask)
            nothing[:, 0] = True  # no logits are needed, and the fewest are one per row
            states_at(model, tokens, nothing, hooks)
    back = torch.tensor(order).argsort()
    return {site: torch.cat(parts)[back] for site, parts in found.items()}


def _mean_difference(
    when: Float[Tensor, "n width"], unless: Float[Tensor, "m width"]
) -> Float[Tensor, " width"] | None:
    return _unit(when.double().mean(0) - unless.double().mean(0))


def _first_component(
    when: Float[Tensor, "n width"], unless: Float[Tensor, "m width"]
) -> Float[Tensor, " width"] | None:
    """Of pairs about their midpoints, which lie at plus and minus half their difference; towards most of the first."""
    n = min(len(when), len(unless))
    apart = when[:n].double() - unless[:n].double()
    component = torch.linalg.svd(apart, full_matrices=False)[2][0]
    towards = int(((apart @ component) > 0).sum()) * 2 >= n
    return _unit(component if towards else -component) if bool(apart.any()) else None


def _unit(direction: Float[Tensor, " width"]) -> Float[Tensor, " width"] | None:
    length = torch.linalg.vector_norm(direction)
    return (direction / length).float() if length > 0 else None


def _best_threshold(when: Float[Tensor, " n"], unless: Float[Tensor, " m"]) -> tuple[float, float, float, bool] | None:
    """Greatest F1, the gap at it in standard deviations, the threshold, and whether what is below it is edited."""
    ordered = torch.cat([when, unless]).double().sort().values
    values = torch.cat([ordered[:1], ordered[1:][ordered.diff() > 0]])
    if len(values) < 2:
        return None
    thresholds, gaps = (values[1:] + values[:-1]) / 2, values.diff() / values.std()
    ups, others = when.double().sort().values, unless.double().sort().values
    below = [torch.searchsorted(side, thresholds) for side in (ups, others)]
    scores = []
    for hits, misses in ((len(ups) - below[0], len(others) - below[1]), (below[0], below[1])):
        scores.append(2 * hits.double() / (len(ups) + hits + misses))
    f1 = torch.stack(scores)  # [side, threshold]
    widest = torch.where(f1 == f1.max(), gaps, -1.0)
    side, place = divmod(int(widest.argmax()), len(thresholds))
    return float(f1.max()), float(gaps[place]), float(thresholds[place]), side == 1


def _worth(when: Float[Tensor, " n"], unless: Float[Tensor, " m"], threshold: float, below: bool) -> dict[str, float]:
    """Precision and recall with their intervals, and F1."""
    hits, false = (int((side < threshold if below else side > threshold).sum()) for side in (when, unless))
    nan = float("nan")
    found: dict[str, float] = {}
    for name, of in (("precision", hits + false), ("recall", len(when))):
        low, high = Proportion(hits, of).interval() if of else (nan, nan)
        found |= {name: hits / of if of else nan, f"{name}_low": low, f"{name}_high": high}
    return {**found, "f1_held_out": 2 * hits / (len(when) + hits + false)}
