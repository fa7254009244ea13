"""The interactive page: plain and edited answers side by side, what the edit does to each token, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sea_lens.arguments import as_folder, check_arguments, shown
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model, check_is_model


def build(
    model: Model | str,
    editors: Mapping[str, Editor | str | Path] | None = None,
    *,
    examples: Sequence[str] | None = None,
    neutral_texts: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
) -> Any:
    """Builds the page, for a notebook, a Hugging Face Space or a server of one's own.

    It listens on this machine alone unless told otherwise, and asks nothing of any other. Users wait for each other in a
    queue, and one at a time uses the model.

    Example:
        >>> page = build("organism")  # doctest: +SKIP
        >>> page.launch(server_port=7860)  # doctest: +SKIP

    Args:
        model: A TransformerBridge, or a name as `sea_lens.load_model` takes it.
        editors: Editors, their folders or their names on the hub, by the name that the page calls them. May be left out for
            `"organism"` and `"bias-organism"`, which are fitted at once; the page says how.
        examples: Prompts to click; None for ones that ship.
        neutral_texts: Texts that damage is measured on; None for `sea_lens.neutral_texts(model)`.
        max_new_tokens: Tokens of an answer at first.

    Returns:
        A `gradio.Blocks`, whose `launch` takes Gradio's keywords.

    Raises:
        InputError: If Gradio is not installed, there is no editor, or something given is of the wrong kind.
        ModelMismatchError: If an editor does not fit the model, or the model is none.
    """
    from sea_lens.page.blocks import blocks_of, gradio
    from sea_lens.page.desk import MOST_NEW_TOKENS
    from sea_lens.page.ready import desk_of

    gradio()  # before a model is loaded
    if not isinstance(model, str):
        check_is_model(model)
    check_arguments(build, {name: value for name, value in locals().items() if name not in ("model", "editors")})
    if editors is not None and not isinstance(editors, Mapping):
        raise InputError('editors are a mapping of names, such as {"truthful": editor}.')
    for name, editor in (editors or {}).items():
        if not isinstance(name, str) or not name.strip():
            raise InputError(f'editors are called by texts, such as {{"truthful": editor}}, and one by {name!r}.')
        if isinstance(editor, str | Path):
            as_folder(editor, f"editors[{name!r}]")
        elif not isinstance(editor, Editor):
            raise InputError(
                f"editors[{name!r}] must be an Editor, its folder or its name on the hub, and {shown(editor)} was given."
            )
    if max_new_tokens is not None and max_new_tokens > MOST_NEW_TOKENS:
        raise InputError(f"max_new_tokens is 1 to {MOST_NEW_TOKENS} on the page, and {max_new_tokens} was given.")
    blank = [example for example in examples or () if not example.strip()]
    if blank:
        raise InputError(f"examples are prompts to click, and {blank[0]!r} is blank. Leave it out.")
    desk = desk_of(model, editors)
    if examples is not None:
        desk.examples = examples
    if neutral_texts is not None:
        desk.measure_on(neutral_texts)
    if max_new_tokens is not None:
        desk.max_new_tokens = max_new_tokens
    return blocks_of(desk)
