"""What massive activations are for: set to zero, to their mean or halved, beside controls (Sun et al., arXiv 2402.17762).

The paper sets them to zero (the model breaks) and to their mean over inputs (nothing happens). It has no control, so one
cannot tell whether the same number of any other coordinates would do the same; here there are three.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.analysis.massive import MAGNITUDE, RATIO, MassiveTokens, massive_in_rows
from sea_lens.arguments import check_arguments
from sea_lens.editing.coordinates import SetCoordinates
from sea_lens.editing.editor import Editor
from sea_lens.editing.where import At, From, Where
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.evaluation import check_model
from sea_lens.evaluation.perplexity import evaluate_perplexity
from sea_lens.evaluation.windows import text_windows
from sea_lens.models.bridge import Model
from sea_lens.models.layers import check_layers
from sea_lens.models.neutral import neutral_texts
from sea_lens.models.passes import telling
from sea_lens.models.sites import Site
from sea_lens.models.tokens import PaddedTokens
from sea_lens.models.unwrapped import forward
from sea_lens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Interventions(Result):
    """What setting massive activations does, and what setting others does.

    Attributes:
        table: One row per intervention: the `coordinates` that are set, at which `tokens`, `perplexity` with it, `ratio` to
            the unedited one with its interval `ratio_low` to `ratio_high`, and `kl` (mean over tokens of
            KL(unedited || edited) in nats) with its interval. Intervals are percentile bootstraps over texts.
        unedited: Perplexity of the unedited model.
        layer: The block after whose output coordinates are set.
        found: The massive activations.
        n: Number of texts.
        confidence: Of the intervals.

    Example:
        >>> found = sl.intervene_on_massive(model, sl.neutral_texts(model)[:3], magnitude=10, ratio=5, control=1)
        >>> found.layer, found.n
        (3, 3)
    """

    table: pd.DataFrame
    unedited: float
    layer: int
    found: MassiveTokens
    n: int
    confidence: float = 0.95


@dataclass(frozen=True)
class _Target:
    """Massive coordinates of one kind of token at one layer."""

    layer: int
    kind: str
    coordinates: tuple[int, ...]
    means: tuple[float, ...]
    limits: tuple[float, ...]

    @property
    def is_first(self) -> bool:
        return self.kind == "first"


def intervene_on_massive(
    model: Model,
    texts: Sequence[str] | None = None,
    *,
    layer: int | None = None,
    magnitude: float = MAGNITUDE,
    ratio: float = RATIO,
    control: int = 3,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 16,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Interventions:
    """Sets massive activations where they first appear, and measures what that does to perplexity.

    - **zero**, **mean** (over the texts) and **half**: the massive coordinates, at the tokens that carry them. Where these
      are the beginning token of every text, the mean is the value itself, for that token sees no other: the row then says
      nothing of constancy, and `found.coordinates` counts the different `tokens`.
    - **next largest to zero**: as many of the next largest coordinates at the same tokens.
    - **random coordinates to zero**: as many others, drawn `control` times; the row is of the largest ratio among them.
    - **random tokens to zero**: the same coordinates at as many other positions, drawn `control` times; the same.

    Example:
        >>> found = sl.intervene_on_massive(model, sl.neutral_texts(model)[:3], magnitude=10, ratio=5, control=1)
        >>> found.table.index.tolist()
        ['zero', 'mean', 'half', 'next largest to zero', 'random coordinates to zero', 'random tokens to zero']

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        texts: What to run; None for `sl.neutral_texts(model)`. Every text is read after the beginning token, if there is one.
        layer: The block after whose output coordinates are set, a negative one from the end; None for the first at which the
            largest activation of all has half of its final size.
        magnitude: As of `massive_tokens`.
        ratio: As of `massive_tokens`.
        control: How often random coordinates and random tokens are drawn; 0 for neither.
        seed: Of the draws and the resamples.
        confidence: Of the intervals.
        batch_size: Texts per forward pass.
        folder: Where to keep finished batches. A run that was killed goes on there.
        progress: Whether to show progress bars.

    Returns:
        The interventions, and the massive activations.

    Raises:
        InputError: If there are no texts, no activation is massive at that layer, or so many coordinates that there are not
            as many others.
        ModelMismatchError: If there is no such layer.

    Warns:
        SeaLensWarning: If the model carries an editor's or other hooks, which all numbers are with then.
    """
    check_arguments(intervene_on_massive, locals())
    check_model(model, None)
    if control < 0:
        raise InputError(f"control is how often controls are drawn, 0 for never, and {control} was given.")
    layer = None if layer is None else check_layers([layer], model.cfg.n_layers)[0]
    given = neutral_texts(model) if texts is None else list(texts)
    windows = sorted(text_windows(model, given, model.cfg.n_ctx, model.cfg.n_ctx), key=lambda window: window.text)
    rows = [window.ids[:-1] for window in windows]  # as they are run: the last token is only scored
    found = massive_in_rows(model, rows, magnitude=magnitude, ratio=ratio, batch_size=batch_size)
    target = _target_of(found, layer)
    sizes = _sizes(model, rows, target)
    interventions = _interventions(model, target, sizes, control, seed)
    measured: dict[str, dict[str, Any]] = {}
    unedited: Any = None
    for name, edits in interventions.items():
        for edit, where, tokens in edits:
            editor = Editor({target.layer: edit}).at_positions(where)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SeaLensWarning)  # of one that changes nothing, as the mean should
                evaluation = evaluate_perplexity(
                    model,
                    given,
                    editor,
                    control=0,
                    damage=False,
                    seed=seed,
                    confidence=confidence,
                    batch_size=batch_size,
                    folder=folder,
                    progress=progress,
                )
            nll, kl = evaluation.table.loc["nll"], evaluation.table.loc["kl"]
            unedited = evaluation.table.loc["perplexity", "unedited"]
            ends = torch.tensor([nll["change"], nll["low"], nll["high"]], dtype=torch.float64).exp().tolist()
            row = {
                "coordinates": ", ".join(map(str, edit.coordinates.tolist())),
                "tokens": tokens,
                "perplexity": evaluation.table.loc["perplexity", "edited"],
                **dict(zip(("ratio", "ratio_low", "ratio_high"), ends, strict=True)),
                "kl": kl["edited"],
                "kl_low": kl["low"],
                "kl_high": kl["high"],
            }
            if name not in measured or row["ratio"] > measured[name]["ratio"]:  # of several draws, the worst
                measured[name] = row
    table = pd.DataFrame.from_dict(measured, orient="index").rename_axis("intervention")
    return Interventions(table, float(unedited), target.layer, found, len(given), confidence)


def _target_of(found: MassiveTokens, layer: int | None) -> _Target:
    table = found.table
    if layer is None and len(table):
        largest = table.assign(size=table["value"].abs()).groupby("layer")["size"].max()
        layer = int(largest.index[largest >= largest.max() / 2][0])
    there = table[table["layer"] == layer]
    if not len(there):
        top = found.layers["largest"].max()
        raise InputError(
            f"No activation is massive{'' if layer is None else f' at layer {layer}'} (above {found.magnitude:g} and "
            f"{found.ratio:g} times the median; the largest is {top:.3g} on average). Choose another layer, or give a lower "
            "magnitude and ratio."
        )
    means = there.assign(size=there["value"].abs()).groupby("kind")["size"].mean()
    kind = str(means.idxmax())
    own = there[there["kind"] == kind].groupby("coordinate")["value"]
    kept = own.agg(["mean", "count"])
    kept = kept[kept["count"] >= kept["count"].max() / 2]  # of a few texts only: not what the model does
    limits = own.agg(lambda values: values.abs().min() / 2)[kept.index]
    numbers = kept["mean"].tolist(), limits.tolist()
    return _Target(int(there["layer"].iloc[0]), kind, tuple(map(int, kept.index)), *map(tuple, numbers))


@torch.no_grad()
def _sizes(model: Model, rows: Sequence[Sequence[int]], target: _Target) -> Float[Tensor, " width"]:
    """Mean absolute value of each coordinate over the tokens that carry the massive ones."""
    sums, n = torch.zeros(model.cfg.d_model, dtype=torch.float64), 0
    gates, limits = torch.tensor(target.coordinates), torch.tensor(target.limits)

    def add(tensor: Tensor, hook: object) -> None:
        nonlocal n
        h = tensor[0].float().cpu()
        h = h[:1] if target.is_first else h[1:]
        h = h[(h[:, gates].abs() > limits).any(-1)]
        sums.add_(h.double().abs().sum(0))
        n += len(h)

    for row in rows:
        tokens = PaddedTokens.of(model, [list(row)])
        with model.hooks(fwd_hooks=[(Site(target.layer).hook_name, add)]), telling(model, None):
            forward(model, tokens.ids, **{**tokens.forward_options(), "stop_at_layer": target.layer + 1})
    return sums / max(n, 1)


Planned = tuple[SetCoordinates, Where, str]


def _interventions(
    model: Model, target: _Target, sizes: Float[Tensor, " width"], control: int, seed: int
) -> dict[str, list[Planned]]:
    """By name, the edits, the tokens that they act on, and these in words."""
    width, k = model.cfg.d_model, len(target.coordinates)
    # A text's later windows may begin with a token that is not massive.
    gates, above = torch.tensor(target.coordinates), torch.tensor(target.limits)
    where: Where = At((0,)) if target.is_first else From(1)
    words = "the first" if target.is_first else "massive ones"
    order = [index for index in sizes.argsort(descending=True).tolist() if index not in target.coordinates]

    def setting(coordinates: Sequence[int], values: Sequence[float], keep: float = 0.0) -> list[Planned]:
        edit = SetCoordinates(width, torch.tensor(coordinates), torch.tensor(values), keep, gates, above)
        return [(edit, where, words)]

    if len(order) < k:
        raise InputError(
            f"{k} of {width} coordinates are massive by this criterion, so there are not as many others to compare with. "
            "Give a higher magnitude and ratio."
        )
    massive, following, zeros = list(target.coordinates), order[:k], [0.0] * k
    planned = {
        "zero": setting(massive, zeros),
        "mean": setting(massive, target.means),
        "half": setting(massive, zeros, 0.5),
        "next largest to zero": setting(following, zeros),
    }
    generator = torch.Generator().manual_seed(seed)
    for _ in range(control):
        drawn = torch.randperm(len(order), generator=generator)[:k]
        planned.setdefault("random coordinates to zero", []).extend(setting([order[int(i)] for i in drawn], zeros))
        # One token in thirty-two of a text, where it is the first that is massive: as many as there are.
        place = int(torch.randint(1, 33, (1,), generator=generator))
        elsewhere = SetCoordinates(width, torch.tensor(massive), torch.zeros(k))
        planned.setdefault("random tokens to zero", []).append((elsewhere, At((place,)), f"number {place}"))
    return planned
