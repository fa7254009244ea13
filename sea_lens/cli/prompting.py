"""What prompts are put into on the command line: a template, or the tokenizer's chat template with its switches."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Optional, TypeVar

from sea_lens.cli.output import note
from sea_lens.data.chat import Conversation, chat_text
from sea_lens.data.prompts import PromptRows, tokenizer_of
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model

Rows = TypeVar("Rows", bound="PromptRows[Any]")
T = TypeVar("T", bound="Talking")


@dataclass(frozen=True)
class Talking:
    """How a conversation is put to the model.

    Attributes:
        chat: Put prompts into the tokenizer's own chat template; as the editor was fitted, if left out.
        system: A system message, with the chat template.
        chat_options: A switch of the chat template, such as enable_thinking=false; repeat for more.

    Raises:
        InputError: If a switch is not NAME=VALUE, or is given without the chat template.
    """

    chat: Optional[bool] = None
    system: Optional[str] = None
    chat_options: Optional[list[str]] = None

    def __post_init__(self) -> None:
        if self.chat is False and (self.system is not None or self.chat_options):
            raise InputError("--system and --chat-option are for the chat template. Leave --no-chat out.")
        self.switches()

    @property
    def is_chat(self) -> bool:
        """Whether prompts go into the chat template."""
        return bool(self.chat) or (self.chat is None and (self.system is not None or bool(self.chat_options)))

    def switches(self) -> dict[str, Any]:
        """The template's switches by name.

        Raises:
            InputError: If one has another form.
        """
        found = {}
        for given in self.chat_options or ():
            name, equals, value = given.partition("=")
            if not name.isidentifier() or not equals:
                raise InputError(
                    f"--chat-option is NAME=VALUE, such as enable_thinking=false, and {given!r} was given."
                )
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = {"True": True, "False": False, "None": None}.get(value, value)
        return found

    def how(self, chat: bool | None = None) -> dict[str, Any]:
        """Keywords of `generate`."""
        in_chat = self.is_chat if chat is None else chat
        return {"system": self.system, "chat_options": self.switches()} if in_chat else {}

    def as_fitted(self: T, editor: Editor) -> T:
        """The same; in the chat template with its switches if nothing is said and the editor was fitted in it."""
        form = editor.card.form
        if self.chat is not None or self.is_chat or form is None or not form.chat:
            return self
        note("asked in the chat template, as the editor was fitted. --no-chat asks without it.")
        switches = [f"{name}={json.dumps(value)}" for name, value in form.chat_options.items()]
        return replace(self, chat=True, system=form.system, chat_options=switches or None)


@dataclass(frozen=True)
class Prompting(Talking):
    r"""What prompts are put into.

    Attributes:
        template: Prompt template, such as 'Q: {question}\nA:' (\n is a line break).

    Raises:
        InputError: If a template and the chat template are both given.
    """

    template: Optional[str] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None and self.is_chat:
            raise InputError("--template and --chat were both given. Give one of them.")

    def prompted(self, rows: Rows, model: Model) -> Rows:
        """The rows with their prompts in the template, if there is one."""
        if self.template is not None:
            rows = rows.with_prompt_template(unescaped(self.template))
        if self.is_chat:
            return rows.with_chat_template(model, self.system, **self.switches())
        if self.chat is None and self.template is None:
            note_plain(model, rows[0].prompt)
        return rows

    def as_fitted(self: T, editor: Editor) -> T:
        """As `Talking` has it, unless there is a template."""
        return self if getattr(self, "template", None) is not None else Talking.as_fitted(self, editor)


def note_plain(
    model: Model, prompt: str, advice: str = "--chat puts them into it, and --no-chat leaves this out"
) -> None:
    """Says that a model has a chat template, where a prompt is asked without it.

    Args:
        model: The model.
        prompt: One of the prompts.
        advice: What to do.
    """
    if isinstance(prompt, Conversation) or not getattr(tokenizer_of(model), "chat_template", None):
        return
    try:
        before = chat_text(model, "?").rpartition("?")[0].split()
    except InputError:  # a template that wants more than one message
        return
    opening = before[-1] if before else ""  # of the user's message, such as <|im_start|>user
    begins = str(getattr(tokenizer_of(model), "bos_token", None) or "")
    if not opening.removeprefix(begins).isalnum():
        opening = opening.removeprefix(begins)  # which TransformerLens may put before it
    if opening and opening not in prompt:
        note(f"this model has a chat template, and the prompts are without it. {advice}.")


def unescaped(template: str) -> str:
    r"""A template as it was meant: `\n` on a command line is a line break."""
    return template.replace("\\n", "\n")
