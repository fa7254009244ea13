"""The page's words and cards as HTML: who is asked, both answers, and what the edit does in one sentence."""

from __future__ import annotations

from html import escape

from sea_lens.analysis.token_html import gauge_html, map_html, percent, tokens_html
from sea_lens.analysis.token_view import TokenView
from sea_lens.models.damage_limits import DamageLimits
from sea_lens.models.layers import spans
from sea_lens.models.repetition import repetition_of
from sea_lens.page.desk import AS_FITTED, SPARING, Desk, Shown


def header_html(desk: Desk) -> str:
    """The model, and where its editors come from."""
    cfg = desk.model.cfg
    facts = f"{cfg.n_layers} layers, width {cfg.d_model}"
    note = f"<p class=sl-note>{escape(desk.note)}</p>" if desk.note else ""
    return (
        f"<header class=sl-top><h1>{escape(desk.name)} <span>under an edit</span></h1>"
        f"<p class=sl-facts>{facts}. Ask it something: it answers twice, plain and with its activations edited.</p>"
        f"{note}</header>"
    )


def cards_html(shown: Shown) -> str:
    """Both answers, beside each other or below each other."""
    busy = "plain" if shown.doing.startswith("the plain") else "edited" if shown.doing.startswith("the edited") else ""
    broken = shown.damage is not None and shown.damage.is_broken
    tag = "<em class=sl-tag>breaks the model</em>" if broken else ""
    return (
        "<div class=sl-cards>"
        f"<article class='sl-card' id=sl-plain aria-live=polite><h2>Plain</h2>{_talk(shown, 'plain', busy)}</article>"
        f"<article class='sl-card sl-card-edited' id=sl-edited aria-live=polite><h2>Edited {tag}</h2>"
        f"<p class=sl-what>{escape(setting_text(shown))}</p>{_talk(shown, 'edited', busy)}</article></div>"
    )


def setting_text(shown: Shown) -> str:
    """The editor and its setting on one line."""
    setting, editor = shown.setting, shown.editor
    if editor is None:
        return f"{setting.editor}, at no layer"
    layers = f"layer{'s' * (len(editor.layers) > 1)} {spans(editor.layers)}" if editor.layers else "outside the layers"
    where = "every token" if editor.where is None else str(editor.where)
    return f"{setting.editor} · strength {setting.strength:g} · {layers} · {where}"


def verdict_html(shown: Shown, desk: Desk) -> str:
    """What the edit does to this answer, and what it costs."""
    if shown.doing:
        return f"<div class='sl-view sl-verdict'><p class='sl-finding sl-busy'>{escape(shown.doing)} …</p></div>"
    words = "".join(f"<p class=sl-finding>{escape(line)}</p>" for line in findings(shown, desk))
    if shown.damage is not None:
        words += gauge_html(shown.damage)
    elif shown.editor is not None:
        words += (
            "<p class=sl-note>The damage is not measured: this model's tokenizer does not know the neutral sample. Give the "
            "page texts in the model's language.</p>"
        )
    return f"<div class='sl-view sl-verdict' id=sl-verdict>{words}</div>"


def findings(shown: Shown, desk: Desk) -> list[str]:
    """In words: whether anything is edited here, whether the answer changes, whether it repeats itself."""
    setting, turn, view = shown.setting, shown.turns[-1], shown.view
    if shown.editor is None:
        layers = spans(desk.editors[setting.editor].layers)
        return [f"Nothing is edited: {setting.editor} edits layers {layers}, and none of them is chosen."]
    if setting.strength == 0:
        return ["Strength 0 is no edit: both answers are the plain model's."]
    found = []
    if view is not None and not view.moved:
        found.append(f"At this setting the edit does nothing here: it moves none of these tokens ({view.where}).")
    elif turn.plain == turn.edited:
        found.append(f"The answer stays the same, word for word. {_moved(view)}")
    else:
        found.append(f"The edit changes the answer. {_moved(view)}")
    shares = [repetition_of(desk.model, said) for said in (turn.plain, turn.edited)]
    if shares[1] - shares[0] > DamageLimits().repetition:
        found.append(
            f"The edited answer repeats itself: {shares[1]:.0%} of its token pairs, against {shares[0]:.0%} plain."
        )
    return found


def view_html(shown: Shown) -> str:
    """Tokens, next tokens and the map of the last turn."""
    view = shown.view
    if view is None:
        return ""
    note = (
        "<p class=sl-note>Both models read the prompt and the edited answer"
        f"{', in the edited conversation' * (shown.chat and len(shown.turns) > 1)}.</p>"
    )
    name = "sl-page-view"
    first = max(0, len(view.tokens) - 200)
    return f"<div class='sl-view' id={name}>{tokens_html(view, name, first)}{note}{map_html(view, first)}</div>"


def problem_html(error: Exception) -> str:
    """An error in its own words."""
    return (
        f"<div class='sl-view sl-verdict' id=sl-verdict><p class='sl-finding sl-problem'>{escape(str(error))}</p></div>"
    )


def where_text(desk: Desk, name: str) -> str:
    """What the choices of tokens mean for this model, in one sentence."""
    fitted = desk.editors[name].where
    spared = f"“{SPARING}” leaves out " + (
        "nothing: this model has no sinks" if desk.sinks is None else str(desk.sinks)
    )
    spared = spared.replace("leaves out all but", "leaves out")
    return f"“{AS_FITTED}” is {'every token' if fitted is None else fitted}; {spared}."


def _moved(view: TokenView | None) -> str:
    if view is None:
        return ""
    after = view.tokens["share"]
    told = percent(float(after.median()))
    return (
        f"It moves {view.moved} of {len(view.tokens)} tokens, by {told} of their length after the last layer (median)."
    )


def _alike(said: str, other: str) -> int:
    """Characters up to which two texts are the same."""
    pairs = enumerate(zip(said, other, strict=False))
    return next((n for n, (one, two) in pairs if one != two), min(len(said), len(other)))


def _talk(shown: Shown, side: str, busy: str) -> str:
    parts = []
    for number, turn in enumerate(shown.turns):
        said, other = getattr(turn, side), turn.plain if side == "edited" else ""
        is_last = number == len(shown.turns) - 1
        cursor = "<span class=sl-cursor></span>" if is_last and busy == side else ""
        shared = _alike(said, other) if side == "edited" else len(said)
        text = escape(said[:shared]) + (f"<mark>{escape(said[shared:])}</mark>" if said[shared:] else "")
        if not said and is_last and not shown.doing:
            text = "<i>(nothing)</i>"
        kind = "sl-asked" if shown.chat else "sl-prompt"
        parts.append(f"<div class={kind}>{escape(turn.asked)}</div><div class=sl-said>{text}{cursor}</div>")
    return f"<div class=sl-talk>{''.join(parts)}</div>"
