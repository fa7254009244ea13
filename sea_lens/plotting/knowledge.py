"""Edited facts: how well each way of editing does, by how many facts are edited at once."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sea_lens.arguments import check_arguments
from sea_lens.evaluation.compare_edits import UNEDITED, EditComparison
from sea_lens.evaluation.fact_prompts import STAY_KL
from sea_lens.plotting.style import GOLD, GREY, INK, PROMOTED, SUPPRESSED, VIOLET, canvas, page, reach, tidy

PANELS = {
    "efficacy": "says the new object",
    "paraphrase": "so in other words",
    "same_subject": "same subject: unchanged",
    "neighborhood": "other subjects: unchanged",
}
WAYS = ((PROMOTED, "o", "-"), (SUPPRESSED, "s", "--"), (INK, "^", "-."), (VIOLET, "D", ":"), (GOLD, "v", "-"))


def plot_edits(found: EditComparison, *, figure: Figure | SubFigure | None = None) -> Figure:
    """What `compare_edits` found: a panel per measure, with intervals, and one of damage; the unedited model as a grey line.

    Args:
        found: From `compare_edits`.
        figure: To draw in, such as a subfigure; None makes one.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> def by_mean(facts):
        ...     return sl.join_facts([sl.SAKE(transport="mean").fit(people.collect(model, fact)) for fact in facts])
        >>> found = sl.compare_edits(model, people.edits(2), {"mean": by_mean}, at_once=[1], control=0, damage=False)
        >>> figure = sl.plotting.plot_edits(found)
        >>> len(figure.axes)
        6
    """
    check_arguments(plot_edits, locals())
    table = found.table
    shown = [name for name in PANELS if name in table]
    count = len(shown) + (STAY_KL in table)
    drawing = canvas(figure, 7.6, 2.5 * -(-(count + 1) // 3))
    *drawn, last = drawing.subplots(-(-(count + 1) // 3), 3).flat
    drawn, spare = drawn[:count], [*drawn[count:], last]
    numbers = sorted(set(table["at_once"]) - {0})
    edits = [name for name in dict.fromkeys(table["edit"]) if name != UNEDITED]
    for name, axes in zip(shown, drawn, strict=False):
        axes.axhline(float(table[name].iloc[0]), color=GREY, linewidth=1.2, label="unedited")
        _draw(axes, found, edits, numbers, name)
        axes.set_ylim(-0.04, 1.04)
        axes.set_title(PANELS[name], fontsize=9)
    if STAY_KL in table:
        axes = drawn[-1]
        _draw(axes, found, edits, numbers, STAY_KL)
        axes.set_ylim(bottom=0)
        axes.set_title("KL where all should stay", fontsize=9)
    for axes in drawn:
        axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
        axes.set_xlim(-0.5, len(numbers) - 0.5)
        axes.set_xlabel("facts edited at once", fontsize=8)
        tidy(axes)
    for axes in drawn[::3]:
        axes.set_ylabel(f"mean of {int(table['n'].iloc[0])} facts", fontsize=8)
    for axes in spare:
        axes.set_axis_off()
    spare[0].legend(*drawn[0].get_legend_handles_labels(), loc="center", fontsize=9, frameon=False)
    return page(drawing)


def _draw(axes: Axes, found: EditComparison, edits: list[str], numbers: list[int], name: str) -> None:
    """One line per way of editing, side by side so that intervals can be told apart."""
    for place, edit in enumerate(edits):
        rows = found.table[found.table["edit"] == edit]
        color, marker, style = WAYS[place % len(WAYS)]
        where = [numbers.index(number) + 0.12 * (place - (len(edits) - 1) / 2) for number in rows["at_once"]]
        bars = reach(rows[name], rows[f"{name}_low"], rows[f"{name}_high"]) if f"{name}_low" in rows else None
        axes.errorbar(
            where, rows[name], yerr=bars, fmt=marker + style, color=color, capsize=2, markersize=4, label=edit
        )
