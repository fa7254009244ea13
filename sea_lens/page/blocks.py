"""The page itself: Gradio's boxes and sliders around a desk. Gradio is imported when the page is built."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from sea_lens.analysis.token_html import style
from sea_lens.errors import InputError
from sea_lens.page.cards import cards_html, header_html, problem_html, verdict_html, view_html, where_text
from sea_lens.page.desk import (
    AS_FITTED,
    MOST_CHARACTERS,
    MOST_NEW_TOKENS,
    STRENGTHS,
    WHERES,
    Desk,
    Setting,
    Turn,
)

Said = list[list[str]]
"""Turns as a browser's session keeps them: asked, plain, edited."""
WAITING = 32
"""Users who may wait in the queue."""


def gradio() -> Any:
    """The library, with its telemetry off.

    Raises:
        InputError: If it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise InputError('The page needs Gradio: pip install "sea-lens[page]".') from error
    return gradio


def looks() -> dict[str, Any]:
    """Keywords of Gradio's `launch`: a theme of one accent color, fonts of the reader's own machine, nothing public."""
    gr = gradio()
    teal = gr.themes.Color(name="teal", **{f"c{step}": color for step, color in zip(STEPS, TEALS, strict=True)})
    theme = gr.themes.Base(
        primary_hue=teal,
        neutral_hue=gr.themes.colors.gray,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="#ffffff",
        body_background_fill_dark="#14171a",
        button_primary_background_fill="#0b6e69",
        button_primary_background_fill_hover="#095a56",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#4fd1c5",
        button_primary_background_fill_hover_dark="#7be0d6",
        button_primary_text_color_dark="#06201e",
        slider_color="#0b6e69",
        slider_color_dark="#4fd1c5",
        **{f"{name}_dark": color for name, color in DARK.items()},
    )
    css = style() + (files("sea_lens.page") / "page.css").read_text(encoding="utf-8")
    return {
        "theme": theme,
        "css": css,
        "share": False,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "max_file_size": "100kb",
        "enable_monitoring": False,
    }


DARK = {
    "block_background_fill": "#14171a",
    "block_border_color": "#333b42",
    "border_color_primary": "#333b42",
    "input_background_fill": "#1d2226",
    "input_border_color": "#333b42",
    "background_fill_primary": "#14171a",
    "background_fill_secondary": "#1d2226",
    "body_text_color": "#e8ecee",
    "body_text_color_subdued": "#a3adb5",
    "block_label_text_color": "#a3adb5",
    "block_title_text_color": "#e8ecee",
    "block_info_text_color": "#a3adb5",
    "button_secondary_background_fill": "#1d2226",
    "button_secondary_border_color": "#333b42",
}
"""A dark page's colors: those of the views in it."""
STEPS = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 950)
TEALS = "#eef8f7 #d3eeec #a8dcd8 #78c7c1 #48aca5 #1f8d86 #0b6e69 #095a56 #074744 #053431 #031f1e".split()


def blocks_of(desk: Desk) -> Any:
    """The page for a desk, as `gradio.Blocks`."""
    gr = gradio()
    first, last = desk.layers
    names = list(desk.editors)
    with gr.Blocks(title=f"{desk.name} under an edit", analytics_enabled=False) as page:
        said, asked = gr.State([]), gr.State("")
        _html(gr, header_html(desk), "sl-header")
        prompt = gr.Textbox(
            label="Prompt",
            info=desk.hint or None,
            lines=2,
            max_lines=6,
            max_length=MOST_CHARACTERS,
            placeholder="Ask something" if desk.can_chat else "Begin a text",
            elem_id="sl-prompt-box",
        )
        with gr.Row(elem_id="sl-asking"):
            ask = gr.Button("Compare", variant="primary", elem_id="sl-ask")
            anew = gr.Button("New conversation", visible=desk.can_chat, elem_id="sl-anew")
            chat = gr.Checkbox(desk.can_chat, label="in the chat template", visible=desk.can_chat, elem_id="sl-chat")
        if desk.examples:
            samples = [[example] for example in desk.examples]
            examples = gr.Dataset(
                components=[prompt], samples=samples, label="Examples", layout="gallery", elem_id="sl-examples"
            )
        shown = [_html(gr, "", name) for name in ("sl-answers", "sl-words")]
        with gr.Row(elem_id="sl-choices"):
            editor = gr.Dropdown(names, value=names[0], label="Editor", elem_id="sl-editor", filterable=False)
            where = gr.Dropdown(
                list(WHERES),
                value=AS_FITTED,
                label="Tokens edited",
                elem_id="sl-where",
                info=where_text(desk, names[0]),
                filterable=False,
            )
        with gr.Row(elem_id="sl-sliders"):
            strength = gr.Slider(
                *STRENGTHS,
                value=1,
                step=0.05,
                label="Strength",
                elem_id="sl-strength",
            )
            start = gr.Slider(first, max(last, first + 1), value=first, step=1, label="First layer", elem_id="sl-first")
            stop = gr.Slider(first, max(last, first + 1), value=last, step=1, label="Last layer", elem_id="sl-last")
            longest = gr.Slider(
                1, MOST_NEW_TOKENS, value=desk.max_new_tokens, step=1, label="Answer tokens", elem_id="sl-longest"
            )
        shown.append(_html(gr, "", "sl-tokens-view"))
        settings = [editor, where, strength, start, stop, longest]
        outputs = [*shown, said, asked]
        how: dict[str, Any] = {"outputs": outputs, "show_progress": "hidden", "api_visibility": "private"}
        how |= {"concurrency_limit": 4, "concurrency_id": "asking"}
        begin, again = partial(answered, desk), partial(answered_again, desk)
        gr.on([ask.click, prompt.submit], begin, [prompt, chat, said, *settings], **how)
        if desk.examples:
            examples.click(
                partial(_chosen, begin), [examples, chat, *settings], outputs=[prompt, *outputs], **_less(how)
            )
            page.load(
                partial(_chosen, begin, [desk.examples[0]]), [chat, *settings], outputs=[prompt, *outputs], **_less(how)
            )
        changed = [editor.input, where.input, strength.release, start.release, stop.release, longest.release]
        gr.on(changed, again, [asked, chat, said, *settings], trigger_mode="always_last", **how)
        quietly = {"show_progress": "hidden", "api_visibility": "private"}
        editor.input(lambda name: gr.Dropdown(info=where_text(desk, name)), editor, where, **quietly)
        anew.click(lambda: ("", "", "", [], "", ""), None, [*outputs, prompt], **quietly)
    page.queue(max_size=WAITING)
    page.launch = partial(page.launch, **looks())
    return page


def answered(
    desk: Desk, prompt: str, chat: bool, said: Said, *settings: Any
) -> Iterator[tuple[str, str, str, Said, str]]:
    """What the page shows while a new prompt is answered: both answers, the words, the tokens; and what is remembered.

    Args:
        desk: The desk.
        prompt: What was typed.
        chat: Whether it goes on with the conversation.
        said: What was said before.
        *settings: Values of the controls, in order.
    """
    before = [Turn(*turn) for turn in said] if chat else []
    try:
        for shown in desk.ask(before, prompt or "", setting_of(*settings), chat):
            turns = [[turn.asked, turn.plain, turn.edited] for turn in shown.turns]
            yield cards_html(shown), verdict_html(shown, desk), view_html(shown), turns, prompt
    except ValueError as error:  # in words for the user
        yield "", problem_html(error), "", said, ""


def answered_again(
    desk: Desk, asked: str, chat: bool, said: Said, *settings: Any
) -> Iterator[tuple[str, str, str, Said, str]]:
    """The same for the last prompt, at other settings; nothing if nothing was asked."""
    if asked:
        yield from answered(desk, asked, chat, said[:-1], *settings)


def setting_of(
    editor: str, where: str, strength: int | float, first: int | float, last: int | float, longest: int | float
) -> Setting:
    """Values of the controls as a setting.

    Raises:
        InputError: If the first layer lies behind the last.
    """
    if first > last:
        raise InputError(f"The first layer edited, {first:g}, lies behind the last, {last:g}. Move one of them.")
    return Setting(editor, where, float(strength), int(first), int(last), int(longest))


def _chosen(begin: Any, example: Sequence[str], chat: bool, *settings: Any) -> Iterator[tuple[Any, ...]]:
    """An example in the box, and answered in a new conversation."""
    for shown in begin(example[0], chat, [], *settings):
        yield (example[0], *shown)


def _html(gr: Any, value: str, name: str) -> Any:
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=None)


def _less(how: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in how.items() if name != "outputs"}
