"""The two figures of a study's page, as SVG that fits any width: what each model has right, and what each trial costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd
from markupsafe import Markup

WIDTH = 720
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
ROW = 46


def effect_figure(table: pd.DataFrame) -> Markup:
    """Shares that are right: of the unedited and the edited model with intervals, of several editors with their range."""
    left, right = 220, 24  # room for the longest name in the larger letters of a small screen
    height = ROW * len(table) + 40

    def x(share: float) -> float:
        return left + share * (WIDTH - left - right)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Share that is right, by model">']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="8" y2="{height - 28}" stroke="var(--line)"/>')
        parts.append(f'<text class="dim" x="{x(tick)}" y="{height - 8}" text-anchor="middle">{tick:.0%}</text>')
    hues = {"unedited": "var(--soft)", "edited": "var(--accent)"}
    for place, (name, row) in enumerate(table.iterrows()):
        y, hue = 8 + ROW * (place + 0.5), hues.get(str(name), "var(--c1)")
        low, high, share = x(row["share_low"]), x(row["share_high"]), x(row["share"])
        thick = 3 if str(name) in hues else 12
        told = f"{row['share']:.1%} [{row['share_low']:.1%}, {row['share_high']:.1%}]"
        parts.append(f"<g><title>{escape(str(name))}: {told}</title>")
        parts.append(f'<text x="{left - 14}" y="{y + 4}" text-anchor="end">{escape(str(name))}</text>')
        parts.append(
            f'<line x1="{low}" x2="{max(high, low + 1)}" y1="{y}" y2="{y}" stroke="{hue}" stroke-width="{thick}" '
            f'opacity="{1 if thick == 3 else 0.35}" stroke-linecap="round"/>'
        )
        parts.append(f'<circle cx="{share}" cy="{y}" r="7" fill="{hue}"/></g>')
    return Markup("".join([*parts, "</svg>"]))  # made of numbers, and of names that are escaped


def shape(kind: str, x: float, y: float, hue: str, size: float = 6) -> str:
    """A mark of a trial."""
    if kind == "square":
        return (
            f'<rect x="{x - size + 1}" y="{y - size + 1}" width="{2 * size - 2}" height="{2 * size - 2}" fill="{hue}"/>'
        )
    if kind in ("triangle", "diamond"):
        points = f"{x},{y - size} {x + size},{y + size} {x - size},{y + size}"
        if kind == "diamond":
            points = f"{x},{y - size - 1} {x + size + 1},{y} {x},{y + size + 1} {x - size - 1},{y}"
        return f'<polygon points="{points}" fill="{hue}"/>'
    if kind == "cross":
        ends = f"M{x - size} {y - size}L{x + size} {y + size}M{x - size} {y + size}L{x + size} {y - size}"
        return f'<path d="{ends}" stroke="{hue}" stroke-width="3" fill="none"/>'
    inside = hue if kind == "circle" else "none"
    return f'<circle cx="{x}" cy="{y}" r="{size}" fill="{inside}" stroke="{hue}" stroke-width="2"/>'


def marks(methods: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    """Shape and color by method."""
    return {name: (SHAPES[n % len(SHAPES)], f"var(--c{n % 6})") for n, name in enumerate(dict.fromkeys(methods))}


def legend(methods: Sequence[str]) -> Markup:
    """What the marks stand for."""
    return Markup("").join(
        Markup("<span><svg viewBox='0 0 16 16'>{}</svg> {}</span>").format(Markup(shape(kind, 8.0, 8.0, hue)), name)
        for name, (kind, hue) in marks(methods).items()
    )


def trials_figure(trials: pd.DataFrame, before: float, max_kl: float | None) -> Markup:
    """What trials come to, against what they cost; the chosen one is ringed.

    Args:
        trials: As those of a `Study`, with scores.
        before: The score of the unedited model.
        max_kl: The limit.
    """
    left, right, top, bottom, height = 64, 20, 16, 46, 380
    most = float(max([*trials["kl"], max_kl or 0.0, 1e-9])) * 1.06
    low, high = (float(end([*trials["score"], before])) for end in (min, max))
    pad = max(0.04, 0.1 * (high - low))
    low, high = max(0.0, low - pad), min(1.0, high + pad)

    def x(kl: float) -> float:
        return left + kl / most * (WIDTH - left - right)

    def y(score: float) -> float:
        return height - bottom - (score - low) / (high - low) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Effect against damage of all trials">']
    for number in range(5):
        score, kl = low + number * (high - low) / 4, number * most / 1.06 / 4
        parts.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y(score)}" y2="{y(score)}" stroke="var(--line)"/>')
        parts.append(f'<text class="dim" x="{left - 8}" y="{y(score) + 4}" text-anchor="end">{score:.2f}</text>')
        parts.append(f'<text class="dim" x="{x(kl)}" y="{height - 24}" text-anchor="middle">{kl:.2g}</text>')
    parts.append(
        f'<text class="dim" x="{(left + WIDTH - right) / 2}" y="{height - 4}" text-anchor="middle">KL, nats per token</text>'
    )
    parts.append(
        f'<line x1="{left}" x2="{WIDTH - right}" y1="{y(before)}" y2="{y(before)}" stroke="var(--soft)" '
        f'stroke-dasharray="5 4"/>'
        f'<text class="dim" x="{WIDTH - right}" y="{y(before) - 6}" text-anchor="end">unedited</text>'
    )
    if max_kl is not None and max_kl <= most:
        parts.append(
            f'<line x1="{x(max_kl)}" x2="{x(max_kl)}" y1="{top}" y2="{height - bottom}" '
            f'stroke="var(--breaks)" stroke-dasharray="2 3"/>'
            f'<text class="dim" x="{x(max_kl) - 6}" y="{top + 10}" text-anchor="end">limit</text>'
        )
    known = marks(list(trials["method"]))
    for _, row in trials.iterrows():
        kind, hue = known[row["method"]]
        place = x(row["kl"]), y(row["score"])
        told = f"{row['method']}, {row['token']}, layers {row['layers']}, strength {row['strength']:.3g}: score "
        told += f"{row['score']:.3f}, {row['right']} of {row['n']} right, KL {row['kl']:.2g}"
        ring = f'<circle cx="{place[0]}" cy="{place[1]}" r="12" fill="none" stroke="var(--ink)" stroke-width="2"/>'
        parts.append(f"<g><title>{escape(told)}</title>{shape(kind, *place, hue)}{ring if row['chosen'] else ''}</g>")
    return Markup("".join([*parts, "</svg>"]))
