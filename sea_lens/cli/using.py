"""Editors at work: generate and chat, plain and edited side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from sea_lens.cli.app import command
from sea_lens.cli.inputs import load
from sea_lens.cli.options import Of, Options
from sea_lens.cli.output import say
from sea_lens.cli.prompting import Talking, note_plain
from sea_lens.cli.texts import show_texts
from sea_lens.data.chat import Message, chat_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.models.damage_limits import DamageLimits
from sea_lens.models.generate import generate as say_next
from sea_lens.models.repetition import repetition_of
from sea_lens.models.sites import named_layers

SPEAKING = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop")


@command("Using", generation=Of(say_next, only=SPEAKING, defaults={"max_new_tokens": 40}))
def generate(
    model: str,
    editor: str,
    prompts: list[str],
    strength: float = 1.0,
    strengths: Optional[tuple[float, ...]] = None,
    kl: Optional[float] = None,
    layers: str = "all",
    *,
    talking: Talking,
    generation: Options,
    loading: Options,
) -> None:
    """Show what the model says, plain and edited, side by side."""
    if sum((strengths is not None, strength != 1, kl is not None)) > 1:
        raise InputError("Of --strength, --strengths and --kl, several were given. Give one of them.")
    fitted = Editor.from_pretrained(editor)
    bridge = load(model, loading)
    fitted, talking = _chosen(fitted, bridge, layers, kl), talking.as_fitted(fitted)
    asked = [[{"role": "user", "content": prompt}] if talking.is_chat else prompt for prompt in prompts]
    if not talking.is_chat and talking.chat is None:
        note_plain(bridge, prompts[0])
    how = {**generation, **talking.how()}
    plain = say_next(bridge, asked, **how)
    answers = {} if strengths is not None and 0 in strengths else {"plain": plain}
    for one in [strength] if strengths is None else strengths:
        name = "edited" if strengths is None and one == 1 else f"strength {one:g}"
        answers[name] = say_next(bridge, asked, fitted.scaled(one), **how) if one else plain
    for number, prompt in enumerate(prompts):
        show_texts({name: said[number] for name, said in answers.items()}, prompt)
    if all(said == plain for said in answers.values()):
        say(_why_alike(fitted, [strength] if strengths is None else strengths))
    for name, said in answers.items():
        note_repetition(bridge, name, plain, said)


@command(
    "Using",
    talking=Of(Talking, without=("chat",), builds=True),
    generation=Of(say_next, only=SPEAKING, defaults={"max_new_tokens": 200}),
)
def chat(
    model: str,
    editor: str,
    strength: float = 1.0,
    kl: Optional[float] = None,
    layers: str = "all",
    *,
    talking: Talking,
    generation: Options,
    loading: Options,
) -> None:
    """Talk to the plain and the edited model at once."""
    if kl is not None and strength != 1:
        raise InputError("--strength and --kl were both given. Give one of them.")
    fitted = Editor.from_pretrained(editor)
    bridge = load(model, loading)
    fitted, talking = _chosen(fitted, bridge, layers, kl), talking.as_fitted(fitted)
    how = {**generation, **talking.how(chat=True)}
    chat_text(bridge, "Hi.", how["system"], how["chat_options"])  # refused before the first word, if at all
    talk = Talk(bridge, fitted, strength, how)
    say(repr(fitted))
    talk.show_settings()
    say("Each side keeps its own history. /help shows the commands.")
    while (line := _next_line()) is not None and talk.take(line):
        pass


@dataclass
class Talk:
    """A conversation with the plain and the edited model, each with its own history.

    Attributes:
        model: The model.
        editor: The editor at strength 1.
        strength: Of the edit.
        how: Keywords of `generate`.
        plain: What was said with the plain model.
        edited: What was said with the edited one.
    """

    model: Model
    editor: Editor
    strength: float
    how: dict[str, Any]
    plain: list[Message] = field(default_factory=list)
    edited: list[Message] = field(default_factory=list)

    def take(self, line: str) -> bool:
        """Answers a line or obeys it; False if it ends the conversation."""
        line = line.strip()
        if not line.startswith("/"):
            if line:
                self.answer(line)
            return True
        word, _, rest = line[1:].partition(" ")
        if word in ("quit", "exit", "q"):
            return False
        if word not in COMMANDS:
            say(f"There is no command /{word}. /help shows those there are; a line that begins with / is one.")
            return True
        try:
            COMMANDS[word][0](self, rest.strip())
        except ValueError as error:
            say(f"/{word} {rest}: {error}")
        return True

    def answer(self, line: str) -> None:
        """Says a line to both, and shows what they say. A line that could not be answered leaves no trace."""
        asked: Message = {"role": "user", "content": line}
        how = {**self.how, "seed": self.how["seed"] + len(self.plain)}  # other draws for every line
        try:
            plain = say_next(self.model, [*self.plain, asked], **how)
            edited = say_next(self.model, [*self.edited, asked], self.editor.scaled(self.strength), **how)
        except KeyboardInterrupt:
            say("\nstopped")
            return
        except InputError as error:
            say(f"{error} /reset begins anew.")
            return
        for history, said in ((self.plain, plain), (self.edited, edited)):
            history += [asked, {"role": "assistant", "content": said}]
        name = f"edited, strength {self.strength:g}"
        show_texts({"plain": plain, name: edited})
        note_repetition(self.model, name, [plain], [edited])

    def set_strength(self, word: str) -> None:
        """Sets how strong the edit is from now on."""
        try:
            strength = float(word)
            self.editor.scaled(strength)
        except ValueError as error:
            raise InputError(f"a strength is a number such as 0.5, and {word!r} was given.") from error
        self.strength = strength
        self.show_settings()

    def set_system(self, text: str) -> None:
        """Sets the system message, none for an empty one, and begins anew."""
        self.how["system"] = text or None
        self.reset("")

    def reset(self, _: str) -> None:
        """Forgets what was said."""
        self.plain, self.edited = [], []
        self.show_settings()

    def undo(self, _: str) -> None:
        """Takes the last line and its answers back."""
        self.plain, self.edited = self.plain[:-2], self.edited[:-2]
        self.show_settings()

    def show_settings(self, _: str = "") -> None:
        """Says what is set."""
        system = "no system message" if self.how["system"] is None else f"system message: {self.how['system']}"
        say(f"strength {self.strength:g}; {system}; lines so far: {len(self.plain) // 2}")

    def show_help(self, _: str) -> None:
        """Shows the commands."""
        for word, (_act, told) in COMMANDS.items():
            say(f"/{word:<18} {told}")
        say("/quit               or Ctrl-D ends; Ctrl-C stops an answer")


COMMANDS: Mapping[str, tuple[Callable[[Talk, str], None], str]] = {
    "strength": (Talk.set_strength, "NUMBER: 1 is the fitted editor, 0 no edit"),
    "system": (Talk.set_system, "TEXT: another system message, and begin anew"),
    "undo": (Talk.undo, "take the last line and its answers back"),
    "reset": (Talk.reset, "begin anew"),
    "settings": (Talk.show_settings, "what is set"),
    "help": (Talk.show_help, "these commands"),
}


def note_repetition(model: Model, name: str, plain: Sequence[str], edited: Sequence[str]) -> None:
    """Says where edited answers repeat themselves far more than plain ones."""
    shares = [sum(repetition_of(model, text) for text in said) / max(1, len(said)) for said in (edited, plain)]
    if shares[0] - shares[1] > DamageLimits().repetition:
        say(
            f"note: {name}, {shares[0]:.0%} of token pairs are repeated, and {shares[1]:.0%} plain: this edit breaks the "
            "model. Try a lower strength."
        )


def _why_alike(editor: Editor, strengths: Sequence[float]) -> str:
    """Why edited answers are the plain ones."""
    if not any(strengths):
        return "At strength 0 there is no edit, so the answers are alike."
    if editor.is_identity:
        return "This editor edits nothing, so the answers are alike: `sea-lens inspect` shows why."
    return "The edit changed none of these answers. Try a greater --strength, or other prompts."


def _next_line() -> str | None:
    """The next line of the user; None at the end or at Ctrl-C. Where no terminal asks, the line is shown."""
    try:
        line = input("\n> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        say("")
        return None
    if not sys.stdin.isatty():
        say(f"\n> {line}")
    return line


def _chosen(editor: Editor, model: Model, layers: str, kl: float | None) -> Editor:
    """The editor at the layers that are named, and as strong as a KL allows."""
    if layers != "all":
        chosen = named_layers(layers, model.cfg.n_layers)
        editor = editor.at_layers([layer for layer in chosen if layer in editor.layers])
    if kl is None:
        return editor
    scaled = editor.scaled_to(model, kl=kl)
    (before, *_), (after, *_) = editor.edits.values(), scaled.edits.values()
    say(f"At {after.strength / before.strength:.3g} of the fitted strength, a KL of {kl:g} nats per token.")
    return scaled
