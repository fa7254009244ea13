"""A view of tokens as HTML that needs nothing else: no script, no other file; light and dark, wide and narrow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from sea_lens.cache import digest
from sea_lens.models.damage import Damage

MOST_TOKENS = 200
"""Tokens that are drawn: the last of the text. The tables have all."""
NUMBERS_UP_TO = 8
"""Layers up to which the map's cells have their number in them."""
MIDDLE, FULL = 0.56, 0.8
"""Depths of color from which text on it is dark on a dark page, and light on a light one: the better contrast of the two."""
TICKS = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)


@runtime_checkable
class Viewed(Protocol):
    """What is drawn, as `TokenView` has it."""

    @property
    def table(self) -> pd.DataFrame:
        """By position and layer."""

    @property
    def tokens(self) -> pd.DataFrame:
        """By position."""

    @property
    def predictions(self) -> pd.DataFrame:
        """By position and next token."""

    @property
    def lens(self) -> pd.DataFrame:
        """By position, layer and next token."""

    @property
    def damage(self) -> Damage | None:
        """On neutral text."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def editor(self) -> str:
        """In words."""

    @property
    def where(self) -> str:
        """In words."""

    @property
    def layers(self) -> Sequence[int]:
        """Those edited."""

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""

    @property
    def finding(self) -> str:
        """What the edit does, in words."""


def depth(share: float) -> float:
    """How deep a color a share of a token's length has: its square root, so that 1 % can be seen and 100 % is full.

    Example:
        >>> depth(0.25), depth(4.0)
        (0.5, 1.0)
    """
    return 1.0 if not math.isfinite(share) else min(1.0, math.sqrt(max(0.0, share)))


def percent(share: float) -> str:
    """A share as text: `12 %`, `0.3 %`, `<0.1 %`."""
    if not math.isfinite(share):
        return "overflow"
    if share == 0:
        return "0 %"
    return "<0.1 %" if share < 0.001 else f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:,.0f} %"


def view_html(view: Viewed) -> str:
    """The tokens, the map and the next tokens, in one element with its own style."""
    name = "sl-" + digest(view.editor, view.where, *(part.to_csv() for part in (view.table, view.predictions)))[:10]
    first = max(0, len(view.tokens) - MOST_TOKENS)
    cost = "" if view.damage is None else gauge_html(view.damage)
    head = f"<p class=sl-head>{escape(view.model)} · {escape(view.editor)} · {escape(view.where)}</p>"
    return (
        f"<div class='sl-view' id='{name}'><style>{style()}</style>{head}"
        f"<p class=sl-finding>{escape(view.finding)}</p>{cost}{tokens_html(view, name, first)}"
        f"{map_html(view, first)}</div>"
    )


def whole_page(view: Viewed) -> str:
    """The same as a page of its own."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport "
        "content='width=device-width, initial-scale=1'><title>What an edit does to each token</title>"
        "<style>html{color-scheme:light dark}body{margin:0;background:#fff}"
        "@media(prefers-color-scheme:dark){body{background:#14171a}}</style></head>"
        f"<body>{view_html(view)}</body></html>\n"
    )


def style() -> str:
    """The style of all that is here; every rule begins with `.sl-`."""
    return (files("sea_lens.analysis") / "token_view.css").read_text(encoding="utf-8")


def gauge_html(damage: Damage) -> str:
    """What an edit costs on text that it should leave alone, beside the limit past which the model counts as broken."""
    limit = damage.limits.kl
    share = min(1.0, damage.kl / (2 * limit)) if math.isfinite(damage.kl) else 1.0
    kind = "sl-broken" if damage.is_broken else "sl-sound"
    told = escape(damage.summary).replace("-&gt;", "→")
    words = "breaks the model" if damage.is_broken else "does not break the model"
    return (
        f"<div class='sl-gauge {kind}' role=img aria-label='{escape(damage.summary)}'>"
        f"<div class=sl-gauge-words><b>Damage: {words}.</b> {told}</div>"
        f"<div class=sl-track><span class=sl-fill style='width:{100 * share:.1f}%'></span><span class=sl-limit></span></div>"
        f"<div class=sl-scale><span>0</span><span>limit: KL {limit:g} nats per token</span><span>{2 * limit:g}+</span></div>"
        "</div>"
    )


def tokens_html(view: Viewed, name: str, first: int = 0) -> str:
    """The text with each token in the color of how far it is moved, and what the model says after the one chosen.

    Args:
        view: What is drawn.
        name: An element's name that nothing else on the page has.
        first: The first position drawn.
    """
    rows = view.tokens.iloc[first:]
    chosen = max(first, view.n_prompt - 1)
    after = dict(iter(view.predictions.groupby("position")))
    layers = {} if view.lens.empty else dict(iter(view.lens.groupby("position")))
    labels, panels, marks = [], [], []
    for row in _rows(rows):
        place = int(row.position)
        shade, tip = depth(row.share), f"{percent(row.share)} of its length at the end, KL {_nats(row.kl)}"
        answer = " sl-answer" if row.part == "answer" else ""
        labels.append(
            f"<label for={name}-{place} class='sl-token {_ink(shade)}{answer}' "
            f"style='--a:{shade:.3f}'>{_shown(row.token)}<span class=sl-tip>{escape(tip)}</span></label>"
        )
        marks.append(f"#{name}:has(#{name}-{place}:checked) label[for={name}-{place}]")
        head = f"After <b>{_shown(row.token)}</b> (position {place}, {row.part}; moved by {tip})"
        panels.append(
            f"<input type=radio class=sl-pick name={name} id={name}-{place} aria-label='position {place}'"
            f"{' checked' if place == chosen else ''}><div class=sl-panel><p>{head}</p><div class=sl-two>"
            f"{_next_table(after[place])}{_lens_table(layers.get(place))}</div></div>"
        )
    cut = f"<p class=sl-note>The last {len(rows)} of {len(view.tokens)} tokens.</p>" if first else ""
    return (
        "<section><h4>Tokens, by how far the edit moves them by the last layer</h4>"
        f"{legend_html()}{cut}<div class=sl-tokens>{''.join(labels)}</div>"
        "<p class=sl-note>Share of the length of a token's state after the last layer. Choose a token to see what comes "
        "after it.</p></section>"
        f"<section><h4>Next token, before and after the edit</h4><style>{','.join(marks)}"
        "{outline:2px solid var(--sl-ink);outline-offset:1px}</style>"
        f"<div class=sl-panels>{''.join(panels)}</div></section>"
    )


def map_html(view: Viewed, first: int = 0) -> str:
    """Tokens by layers: each cell is how far the token's state is moved after the layer."""
    table = view.table[view.table["position"] >= first]
    layers = sorted(table["layer"].unique().tolist())
    here = set(view.layers)
    heads = "".join(f"<th class='{'sl-edited' if layer in here else ''}'>{layer}</th>" for layer in layers)
    lines = []
    for position, part in table.groupby("position"):
        cells = "".join(_cell(row, len(layers)) for row in _rows(part))
        lines.append(f"<tr><th title='position {position}'>{_shown(part['token'].iloc[0])}</th>{cells}</tr>")
    few = " sl-few" if len(layers) <= NUMBERS_UP_TO else ""
    return (
        "<section><h4>Through the layers</h4><div class=sl-scroll tabindex=0>"
        f"<table class='sl-map{few}'><thead><tr><th>layer</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        "</div><p class=sl-note>Underlined layers are edited. A dot is a token that is edited there; other colors are tokens "
        "that the edits move further on. Point at a cell, or tap it, for its numbers.</p></section>"
    )


def legend_html() -> str:
    """The scale of colors."""
    ticks = "".join(
        f"<span style='left:{100 * depth(tick):.0f}%'>{100 * tick:g}{' %+' * (tick == 1)}</span>" for tick in TICKS
    )
    return f"<div class=sl-legend aria-hidden=true><div class=sl-ramp></div><div class=sl-ticks>{ticks}</div></div>"


def _rows(table: pd.DataFrame) -> Iterable[Any]:
    return table.itertuples(index=False)


def _ink(shade: float) -> str:
    return "sl-full" if shade >= FULL else "sl-middle" if shade >= MIDDLE else "sl-pale"


def _cell(row: Any, n_layers: int) -> str:
    share, own = float(row.share), float(row.own)
    shade = depth(share)
    tip = f"layer {row.layer}: {percent(share)}, {row.displacement:.3g} long"
    edited = own > 0
    tip += f", {own:.3g} by the edit here" if edited else ""
    number = f"{100 * share:.0f}" if n_layers <= NUMBERS_UP_TO and math.isfinite(share) else ""
    kind = " ".join([_ink(shade)] + ["sl-dot"] * edited)
    return f"<td class='{kind}' style='--a:{shade:.3f}' tabindex=-1 data-tip='{escape(tip)}'>{number}</td>"


def _next_table(rows: pd.DataFrame) -> str:
    lines = [
        f"<tr><td class=sl-word>{_shown(row.next)}</td>{_bar(row.unedited, 'sl-before')}{_bar(row.edited, 'sl-after')}</tr>"
        for row in _rows(rows)
    ]
    return (
        "<table class=sl-next><thead><tr><th>next token</th><th>unedited</th><th>edited</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _lens_table(rows: pd.DataFrame | None) -> str:
    """The likeliest token of either model after each layer, the last layer first."""
    if rows is None:
        return ""
    lines = []
    for layer, part in sorted(rows.groupby("layer"), key=lambda pair: -int(str(pair[0]))):
        cells = [_best(part, side) for side in ("unedited", "edited")]
        same = cells[0][0] == cells[1][0]
        said = [f"<td class='sl-word{'' if same else ' sl-differs'}'>{_shown(word)}</td>" for word, _ in cells]
        said = [cell + f"<td class=sl-share>{_chance(p)}</td>" for cell, (_, p) in zip(said, cells, strict=True)]
        lines.append(f"<tr><th>{layer}</th>{''.join(said)}</tr>")
    return (
        "<table class=sl-lens><thead><tr><th>layer</th><th colspan=2>unedited, if it ended here</th>"
        f"<th colspan=2>edited</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _best(part: pd.DataFrame, side: str) -> tuple[str, float]:
    row = part.iloc[int(part[side].fillna(-1).to_numpy().argmax())]
    return str(row["next"]), float(row[side])


def _bar(share: float, kind: str) -> str:
    width = 0.0 if math.isnan(share) else 100 * share
    return f"<td class='sl-bar {kind}'><span style='width:{width:.1f}%'></span><b>{_chance(share)}</b></td>"


def _chance(share: float) -> str:
    return "NaN" if math.isnan(share) else "<0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _nats(value: float) -> str:
    return f"{value:.2g} nats" if value < 100 else f"{value:.0f} nats"


def _shown(token: str) -> str:
    """A token with its white space to be seen, as HTML."""
    if not token.strip():
        token = token.replace(" ", "␣") or "∅"
    return escape(token.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍"))
