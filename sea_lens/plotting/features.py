"""The sparse features that an edit moves: how far, and how often each is active on either side of its demonstrations."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sea_lens.analysis.features import Features
from sea_lens.arguments import check_arguments
from sea_lens.plotting.style import GREY, PROMOTED, SUPPRESSED, canvas, page, tidy


def plot_features(found: Features, *, most: int = 20, figure: Figure | SubFigure | None = None) -> Figure:
    """What is added to the code of each feature, and the share of each side's activations in which it is active.

    Args:
        found: From `read_features`.
        most: Rows shown, those that move activations most.
        figure: To draw in; None makes one.

    Example:
        >>> figure = sl.plotting.plot_features(sl.read_features(model, sl.SAEFeature(sl.load_sae("organism"), 3).steer(2.0)))
        >>> len(figure.axes)
        1
    """
    check_arguments(plot_features, locals())
    table = found.table.head(most).iloc[::-1]
    fitted = bool(table["positive"].notna().any())
    figure = canvas(figure, 7.4 if fitted else 4.2, 1.2 + 0.28 * len(table))
    panels: list[Axes] = list(figure.subplots(1, 2 if fitted else 1, sharey=True, squeeze=False).flat)
    rows = np.arange(len(table))
    colors = [PROMOTED if side == "up" else SUPPRESSED for side in table["side"]]
    panels[0].barh(rows, table["value"], 0.7, color=colors)
    panels[0].axvline(0, color=GREY, linewidth=0.8)
    panels[0].set_yticks(rows, [str(number) for number in table["feature"]])
    panels[0].set_ylabel("feature")
    panels[0].set_xlabel("code added (or set)")
    if fitted:
        for side, offset, color, hatch in (("positive", 0.19, PROMOTED, ""), ("negative", -0.19, SUPPRESSED, "////")):
            look: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
            panels[1].barh(rows + offset, table[side], 0.36, label=side, **look)
        panels[1].set_xlim(0, 1)
        panels[1].set_xlabel("share of activations in which it is active")
        panels[1].legend(fontsize=8, frameon=False)
    figure.suptitle(f"Features at {found.site}", fontsize=9)
    tidy(*panels)
    return page(figure)
