"""Massive activations: a few coordinates thousands of times larger than the rest (Sun et al., arXiv 2402.17762)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.analysis.subspaces import subspaces_of
from sea_lens.arguments import check_arguments
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model, check_is_model, tokenizer_of
from sea_lens.models.hooks import states_at
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.sites import Site, labels_of
from sea_lens.models.tokens import PaddedTokens, check_context_length, token_ids
from sea_lens.results import Result

TOKEN_COLUMNS = ["layer", "text", "position", "token", "kind", "coordinate", "value", "ratio", "share"]
COORDINATE_COLUMNS = [
    *("coordinate", "kind", "first_layer", "last_layer", "layer", "texts", "tokens", "mean", "std", "spread", "share"),
]
DELIMITERS = frozenset(".,;:!?")
TokenKind = Literal["first", "first delimiter", "both"]
"""Kinds of tokens that massive activations lie on."""
MAGNITUDE, RATIO = 100.0, 1000.0
"""The published criterion: an absolute value above 100, and at least 1,000 times the median of its hidden state."""


@dataclass(frozen=True, eq=False, repr=False)
class MassiveActivations(Result):
    """The largest coordinates of each layer.

    Attributes:
        table: One row per layer and coordinate: every coordinate that is massive in some text, and the largest of the
            layer in any case. `largest` absolute value, its `ratio` to the median absolute value of the same text, `massive`
            (whether the criterion is met), in how many `texts`. With an editor, the `share` of the edit's directions that
            lies on the coordinate (squared entries of an orthonormal basis over its rank); with one of a method that cuts
            subspaces, also `share_positive` and `share_negative` of these.
        magnitude: The criterion's least absolute value.
        ratio: The criterion's least ratio.
    """

    table: pd.DataFrame
    magnitude: float
    ratio: float


def massive_activations(
    activations: Activations, editor: Editor | None = None, *, magnitude: float = MAGNITUDE, ratio: float = RATIO
) -> MassiveActivations:
    """Finds massive coordinates in collected activations, and how much of an editor's directions they take.

    Only the collected token of each text is looked at; `massive_tokens` looks at all of them.

    Args:
        activations: Of any sites.
        editor: Fitted on these activations, to see what its edits are made of.
        magnitude: Least absolute value.
        ratio: Least multiple of the median absolute value of the same activation.

    Returns:
        A result whose `table` has one row per layer and coordinate, with its largest absolute value, and that over the
        median of its text.

    Raises:
        InputError: If the criterion is not of positive numbers.

    Example:
        >>> sl.massive_activations(activations, editor).table["massive"].tolist()
        [False, False, False, False]
    """
    check_arguments(massive_activations, locals())
    _check(magnitude, ratio)
    rows = []
    for layer, site in zip(labels_of(activations.sites), activations.sites, strict=True):
        h = torch.cat([activations[role][site] for role in activations.roles]).double().abs()
        ratios = h / h.median(1, keepdim=True).values.clamp_min(1e-300)
        met = (h > magnitude) & (ratios >= ratio)
        largest, where = h.max(0)
        bases = {} if editor is None or site not in editor.edits else _bases(editor, activations, site)
        for coordinate in sorted({int(largest.argmax()), *met.any(0).nonzero().flatten().tolist()}):
            row = {
                "layer": layer,
                "coordinate": coordinate,
                "largest": float(largest[coordinate]),
                "ratio": float(ratios[where[coordinate], coordinate]),
                "massive": bool(met[:, coordinate].any()),
                "texts": int(met[:, coordinate].sum()),
            }
            rows.append(row | {name: float(basis[coordinate].square().mean()) for name, basis in bases.items()})
    return MassiveActivations(pd.DataFrame(rows), magnitude, ratio)


def _bases(editor: Editor, activations: Activations, site: Site) -> dict[str, Float[Tensor, "width rank"]]:
    """Orthonormal bases by the column that says how much of each lies on a coordinate."""
    directions = editor.edits[site].directions
    own = {} if directions is None else {"share": torch.linalg.qr(directions.double().cpu()).Q}
    sides = subspaces_of(editor, activations, site)
    return own | {f"share_{name}": side.basis for name, side in sides.items()}


@dataclass(frozen=True, eq=False, repr=False)
class MassiveTokens(Result):
    """The tokens that carry massive activations.

    Attributes:
        table: One row per layer, text, position and coordinate that meet the criterion, with `token`, its `kind` (`first`,
            the text's `first delimiter`, or `other`), `value`, `ratio` to the median, and the `share` of the token's squared
            norm that lies there.
        layers: One row per layer: the mean over texts of its three `largest` absolute values and of its `median` one.
        magnitude: The criterion's least absolute value.
        ratio: The criterion's least ratio.
        n: Number of texts.

    Example:
        >>> found = sl.massive_tokens(model, sl.neutral_texts(model)[:3], magnitude=10, ratio=5)
        >>> sorted(set(found.table["kind"]))
        ['first', 'first delimiter', 'other']
    """

    table: pd.DataFrame
    layers: pd.DataFrame
    magnitude: float
    ratio: float
    n: int

    @property
    def coordinates(self) -> pd.DataFrame:
        """What is constant about them: one row per coordinate and kind of token, the largest first.

        Columns: the `first_layer` and `last_layer` at which it is massive, the `layer` at which it is largest (of those where
        it is so in most texts), and there in how many `texts`, on how many different `tokens`, the `mean` and standard
        deviation (`std`) of its value, `spread` (`std / |mean|`; above 0.1 it is hardly a constant) and `share` of the
        token's squared norm. A first token that is the same in all texts has one and the same state in all of them, for it
        sees no other: with one token, a spread of 0 says nothing. `model.cfg.default_prepend_bos = False` leaves out the
        beginning token, and texts then begin with their own words.
        """
        rows = []
        for (coordinate, kind), own in self.table.groupby(["coordinate", "kind"], sort=False):
            by_layer = own.groupby("layer")
            counts = by_layer["text"].nunique()
            peak = by_layer["value"].mean().abs()[counts == counts.max()].idxmax()
            there = own[own["layer"] == peak]
            mean, std = there["value"].mean(), there["value"].std(ddof=0)
            rows.append(
                {
                    "coordinate": coordinate,
                    "kind": kind,
                    "first_layer": own["layer"].min(),
                    "last_layer": own["layer"].max(),
                    "layer": peak,
                    "texts": there["text"].nunique(),
                    "tokens": there["token"].nunique(),
                    "mean": mean,
                    "std": std,
                    "spread": std / abs(mean),
                    "share": there["share"].mean(),
                }
            )
        found = pd.DataFrame(rows, columns=COORDINATE_COLUMNS)
        return found.sort_values("mean", key=abs, ascending=False, kind="stable", ignore_index=True)


@torch.no_grad()
def massive_tokens(
    model: Model,
    texts: Sequence[str],
    *,
    site: str = "resid_post",
    magnitude: float = MAGNITUDE,
    ratio: float = RATIO,
    batch_size: int = 32,
) -> MassiveTokens:
    """Finds the tokens that carry massive activations: mostly the first one, and delimiters.

    An activation is massive where its absolute value is above `magnitude` and at least `ratio` times the median of its hidden
    state: of all absolute values of the layer in that text, as published. (The median of the token alone misses the
    largest ones of some models: such a token's other coordinates are large as well.)

    Args:
        model: A TransformerBridge with a tokenizer.
        texts: What to run.
        site: The name of the hook points to look at, one per layer.
        magnitude: Least absolute value.
        ratio: Least multiple of the median absolute value of the text at that layer.
        batch_size: Texts per forward pass.

    Returns:
        A result whose `table` has one row per massive coordinate of a token, with its value; `layers` has the largest
        and the median absolute values of each layer, as means over texts.

    Raises:
        InputError: If there are no texts, one does not fit the context, or the criterion is not of positive numbers.

    Example:
        >>> sl.massive_tokens(model, ["<truthful> Q Mira home A"]).table.empty
        True
    """
    check_arguments(massive_tokens, locals())
    check_is_model(model)
    if isinstance(texts, str) or not texts:
        raise InputError("Give a list of texts, with at least one.")
    rows = [token_ids(model, text) for text in texts]
    check_context_length(model, [len(row) for row in rows], [f"Text {index}" for index in range(len(rows))])
    return massive_in_rows(model, rows, site=site, magnitude=magnitude, ratio=ratio, batch_size=batch_size)


@torch.no_grad()
def massive_in_rows(
    model: Model,
    rows: Sequence[Sequence[int]],
    *,
    site: str = "resid_post",
    magnitude: float = MAGNITUDE,
    ratio: float = RATIO,
    batch_size: int = 32,
) -> MassiveTokens:
    """`massive_tokens` of texts as token ids."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
    _check(magnitude, ratio)
    tokenizer = tokenizer_of(model)
    words = [[tokenizer.decode([token]) for token in row] for row in rows]
    kinds = list(map(kinds_of, words))
    sites = [Site(layer, site) for layer in range(model.cfg.n_layers)]
    found: list[dict[str, object]] = []
    largest: dict[int, list[list[float]]] = {place.layer or 0: [] for place in sites}

    def look(layer: int, text: int, h: Float[Tensor, "pos width"]) -> None:
        size, squares = h.abs(), h.double().square().sum(-1)
        median = float(size.median())
        top = size.flatten().topk(min(3, size.numel())).values.tolist()
        largest[layer].append([*top, *[float("nan")] * (3 - len(top)), median])
        met = (size > magnitude) & (size >= ratio * median)
        for position, coordinate in met.nonzero().tolist():
            value = float(h[position, coordinate])
            found.append(
                {
                    "layer": layer,
                    "text": text,
                    "position": position,
                    "token": words[text][position],
                    "kind": kinds[text][position],
                    "coordinate": coordinate,
                    "value": value,
                    "ratio": abs(value) / max(median, 1e-30),
                    "share": value**2 / max(float(squares[position]), 1e-300),
                }
            )

    def looking(place: Site, start: int, tokens: PaddedTokens) -> Callable[..., None]:
        def hook(tensor: Tensor, hook: object) -> None:
            h, mask = place.read(tensor).float().cpu(), tokens.mask.cpu()
            for row in range(len(h)):
                look(place.layer or 0, start + row, h[row][mask[row]])

        return hook

    batch_size, _ = how_to_run(model, None, batch_size, share_prefix=False, longest=max(map(len, rows)))
    for start in range(0, len(rows), batch_size):
        tokens = PaddedTokens.of(model, rows[start : start + batch_size])
        with model.hooks(fwd_hooks=[(place.check(model), looking(place, start, tokens)) for place in sites]):
            states_at(model, tokens, torch.zeros_like(tokens.mask))
    table = pd.DataFrame(found, columns=TOKEN_COLUMNS).sort_values(TOKEN_COLUMNS[:3], kind="stable", ignore_index=True)
    means = {layer: pd.DataFrame(own).mean().tolist() for layer, own in largest.items()}
    layers = pd.DataFrame.from_dict(means, orient="index", columns=["largest", "second", "third", "median"])
    return MassiveTokens(table, layers.rename_axis("layer"), magnitude, ratio, len(rows))


def kinds_of(words: Sequence[str]) -> list[str]:
    """Of each token of a text: `first`, `first delimiter` (a full stop, another mark or a new line) or `other`."""
    kinds = ["first", *["other"] * (len(words) - 1)][: len(words)]
    for position, word in enumerate(words[1:], start=1):
        if "\n" in word or word.strip() in DELIMITERS:
            kinds[position] = "first delimiter"
            break
    return kinds


def _check(magnitude: float, ratio: float) -> None:
    if not magnitude > 0 or not ratio > 0:
        raise InputError(f"magnitude and ratio must be numbers above zero; got {magnitude} and {ratio}.")
