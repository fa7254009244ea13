"""What an edit does to each token of a text: how far each layer moves it, how much what comes next changes, and to what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure, SubFigure

from sea_lens.analysis.token_view import TokenView
from sea_lens.arguments import check_arguments
from sea_lens.errors import InputError
from sea_lens.plotting.style import GREY, PROMOTED, canvas, heat_map, page, tidy

MOVED = LinearSegmentedColormap.from_list("moved", ["#ffffff", PROMOTED])
NUMBERS_UP_TO = 12
"""Layers up to which cells have their number in them."""
LONGEST = 14
"""Characters of a token that are shown."""


def plot_tokens(
    found: TokenView, *, position: int | None = None, most: int = 40, figure: Figure | SubFigure | None = None
) -> Figure:
    """Three panels: tokens by layers in the color of how far they are moved, KL by token, and the likeliest next tokens.

    Args:
        found: From `view_tokens`.
        position: After which token the next ones are shown; None for the last of the prompt.
        most: Tokens drawn, the last of the text.
        figure: To draw in; None makes one.

    Raises:
        InputError: If the text has no such position.

    Example:
        >>> view = sl.view_tokens(model, "Q: where does Dalia live? A:", editor, damage=False)
        >>> sl.plotting.plot_tokens(view).savefig("dalia.pdf")
    """
    check_arguments(plot_tokens, locals())
    n = len(found.tokens)
    place = found.n_prompt - 1 if position is None else position
    if not 0 <= place < n:
        raise InputError(f"position must be 0 to {n - 1}, one of the text's tokens; {position} was given.")
    shown = found.tokens.tail(max(1, most))
    table = found.table[found.table["position"].isin(shown["position"])]
    shares = table.pivot(index="position", columns="layer", values="share")
    layers = [int(layer) for layer in shares.columns]
    words = [word_of(token) for token in shown["token"]]
    figure = canvas(figure, 3.6 + 4.4 + 0.22 * len(layers), 1.4 + 0.24 * max(len(words), 8))
    panels: list[Axes] = list(figure.subplots(1, 3, width_ratios=[2 + 0.2 * len(layers), 2, 3]))
    _draw_map(panels[0], shares.to_numpy(dtype=float), words, layers, found.layers)
    _draw_kl(panels[1], shown["kl"].to_numpy(dtype=float), len(words))
    _draw_next(panels[2], found, place)
    cost = "" if found.damage is None else f"\ndamage: KL {found.damage.kl:.2g} nats per token on neutral text"
    cost += " (breaks the model)" if found.damage is not None and found.damage.is_broken else ""
    figure.suptitle(f"{found.model}: {found.editor}, {found.where}{cost}", fontsize=9)
    return page(figure)


def word_of(token: str) -> str:
    """A token as a label: white space to be seen, cut where it is long, dollar signs as such."""
    shown = token.replace("\n", "\u23ce").replace("\t", "\u21e5").strip() or repr(token)
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in shown)
    return (shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "\u2026").replace("$", r"\$")


def _draw_map(axes: Axes, shares: np.ndarray, words: list[str], layers: list[int], edited: Sequence[int]) -> None:
    few = len(layers) <= NUMBERS_UP_TO
    texts = [[f"{100 * share:.0f}" if few and np.isfinite(share) else "" for share in row] for row in shares]
    heat_map(axes, shares, PowerNorm(0.5, 0, 1, clip=True), texts, rows=words, columns=layers, colors=MOVED)
    if not few:
        axes.set_xticks(range(0, len(layers), -(-len(layers) // NUMBERS_UP_TO)))
    axes.scatter(list(edited), [-0.85] * len(edited), marker="v", s=14, color=PROMOTED, clip_on=False)
    axes.set_xlabel("after layer (\u25bc edited)", fontsize=8)
    axes.set_title("Moved, % of a token's length", fontsize=9, pad=10)


def _draw_kl(axes: Axes, kl: np.ndarray, n: int) -> None:
    axes.barh(range(n), np.where(np.isfinite(kl), kl, 0.0), 0.7, color=PROMOTED)
    for row, value in enumerate(kl):
        if not np.isfinite(value):
            axes.text(0, row, "infinite", fontsize=7, va="center")
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlabel("nats", fontsize=8)
    axes.set_title("KL of what comes next", fontsize=9)
    tidy(axes)


def _draw_next(axes: Axes, found: TokenView, place: int) -> None:
    rows = found.predictions[found.predictions["position"] == place]
    heights = np.arange(len(rows))
    for side, offset, color in (("unedited", -0.2, GREY), ("edited", 0.2, PROMOTED)):
        axes.barh(heights + offset, rows[side].fillna(0.0), 0.38, color=color, label=side)
    axes.set_yticks(heights, [word_of(token) for token in rows["next"]])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability", fontsize=8)
    axes.set_title(f"Next after {word_of(found.tokens['token'].iloc[place])!r}", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    tidy(axes)
