"""What stands behind the page: one model that is asked by one user at a time, its editors, and what it has said already."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from sea_lens.analysis.token_view import TokenView, view_tokens
from sea_lens.data.chat import Message, chat_text
from sea_lens.editing.controls import random_editor_like
from sea_lens.editing.editor import Editor
from sea_lens.editing.sparing import NotMassive
from sea_lens.editing.where import Positions
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.answering import Asking, answer_as_it_comes
from sea_lens.models.bridge import Model, ModelInfo, tokenizer_of
from sea_lens.models.damage import Damage, DamageMeter
from sea_lens.models.sinks import find_sinks
from sea_lens.models.tokens import token_ids

MOST_CHARACTERS, MOST_TOKENS, MOST_NEW_TOKENS, MOST_TURNS = 4000, 512, 128, 8
"""What one user may ask for at once."""
STRENGTHS = (-4.0, 4.0)
KEPT = 64
"""Answers, views and damages that are kept."""
AS_FITTED, SPARING = "as fitted", "every token but sinks"
WHERES: Mapping[str, Positions] = {
    AS_FITTED: None,
    SPARING: None,
    "every token": "all",
    "every token but the first": "not first",
    "the prompt alone": "prompt",
    "what is generated alone": "generated",
}
CONTROL = "control: random, as far as "
"""Before the name of an editor: one that moves every token as far, in another direction."""
Found = TypeVar("Found")


@dataclass(frozen=True)
class Setting:
    """What is set on the page.

    Attributes:
        editor: Its name.
        where: One of `WHERES`.
        strength: Times the editor's own.
        first: The first layer that is edited.
        last: The last one.
        max_new_tokens: Longest answer.
    """

    editor: str
    where: str = AS_FITTED
    strength: float = 1.0
    first: int = 0
    last: int = 10**6
    max_new_tokens: int = 48


@dataclass(frozen=True)
class Turn:
    """What was asked, and what both models said."""

    asked: str
    plain: str = ""
    edited: str = ""


@dataclass(frozen=True, eq=False)
class Shown:
    """What there is to be seen so far.

    Attributes:
        turns: The conversation, or the one text and its continuations.
        setting: What is set.
        chat: Whether it is a conversation.
        doing: What is being done; empty when all is there.
        view: Both models' tokens of the last turn.
        damage: What the edit costs; None before it is measured, or where there is no text to measure it on.
        editor: The editor at its setting; None where it edits no layer chosen.
    """

    turns: tuple[Turn, ...]
    setting: Setting
    chat: bool
    doing: str = ""
    view: TokenView | None = None
    damage: Damage | None = None
    editor: Editor | None = None


@dataclass(eq=False)
class Desk:
    """A model, its editors, and a lock: hooks of two users never mix.

    Attributes:
        model: The model.
        editors: By name.
        note: Where the editors come from, where nobody gave them.
        examples: Prompts to click.
        hint: What prompts look like, for a model with a language of its own.
        texts: What damage is measured on; None for `neutral_texts(model)`.
        max_new_tokens: Tokens of an answer at first.
    """

    model: Model
    editors: dict[str, Editor]
    note: str = ""
    examples: Sequence[str] = ()
    hint: str = ""
    texts: Sequence[str] | None = None
    max_new_tokens: int = 48
    lock: Lock = field(default_factory=Lock)
    _kept: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    _meter: DamageMeter | None = None

    def __post_init__(self) -> None:
        """Adds a control to each editor, and looks for attention sinks once.

        Raises:
            InputError: If there is no editor.
            ModelMismatchError: If one does not fit the model.
        """
        if not self.editors:
            raise InputError("The page needs an editor. `sea-lens fit METHOD MODEL DEMONSTRATIONS` makes one.")
        for name, editor in list(self.editors.items()):
            editor.check(self.model)
            try:
                self.editors[CONTROL + name] = random_editor_like(editor, seed=0)
            except InputError:  # an edit of a kind that has no random twin
                continue
        self.sinks = NotMassive.of(find_sinks(self.model))

    @property
    def name(self) -> str:
        """The model's."""
        return ModelInfo.of(self.model).name

    @property
    def can_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(tokenizer_of(self.model), "chat_template", None))

    @property
    def layers(self) -> tuple[int, int]:
        """The first and the last layer that an editor edits."""
        found = [layer for editor in self.editors.values() for layer in editor.layers]
        return min(found, default=0), max(found, default=self.model.cfg.n_layers - 1)

    def measure_on(self, texts: Sequence[str]) -> None:
        """Has damage measured on some texts.

        Raises:
            InputError: If it cannot be.
        """
        self.texts, self._meter = texts, DamageMeter.of(self.model, (), texts)

    def edited(self, setting: Setting) -> Editor | None:
        """The editor at a setting; None where it has no layer there.

        Raises:
            InputError: If there is no such editor, place or strength.
        """
        low, high = STRENGTHS
        if setting.editor not in self.editors or setting.where not in WHERES or not low <= setting.strength <= high:
            raise InputError(f"The page has no such setting: {setting.editor}, {setting.where}, {setting.strength}.")
        editor = self.editors[setting.editor]
        sites = [s for s in editor.sites if s.layer is None or setting.first <= s.layer <= setting.last]
        if not sites:
            return None
        editor = editor.at_layers(sites) if len(sites) < len(editor.sites) else editor
        if setting.where == SPARING:
            editor = editor.at_positions("all" if self.sinks is None else self.sinks)
        elif setting.where != AS_FITTED:
            editor = editor.at_positions(WHERES[setting.where])
        return editor.scaled(setting.strength)

    def ask(self, turns: Sequence[Turn], prompt: str, setting: Setting, chat: bool = False) -> Iterator[Shown]:
        """Answers, and looks at what the edit does, a step at a time.

        Args:
            turns: What was said before, in a conversation.
            prompt: A text, or what a user says.
            setting: What is set.
            chat: Whether it is a conversation.

        Raises:
            InputError: If the prompt is empty or too long, or the setting impossible.
        """
        before = tuple(turns) if chat else ()
        setting = replace(setting, max_new_tokens=min(max(1, int(setting.max_new_tokens)), MOST_NEW_TOKENS))
        editor = self.edited(setting)
        texts = [self._text([*((t.asked, getattr(t, side)) for t in before), (prompt, "")], chat) for side in SIDES]
        shown = Shown((*before, Turn(prompt)), setting, chat, "the plain model answers", editor=editor)
        for side, text, used in zip(SIDES, texts, (None, editor), strict=True):
            shown = replace(shown, doing=f"the {side} model answers")
            yield shown
            key = ("answer", text, setting.max_new_tokens, None if used is None else _edit(setting))
            for said in self._streamed(key, partial(self._answer, text, used, setting)):
                shown = replace(shown, turns=(*before, replace(shown.turns[-1], **{side: said})))
                yield shown
        yield (shown := replace(shown, doing="looking at the tokens"))
        if editor is not None:
            view = self._once(
                ("view", texts[1], shown.turns[-1].edited, _edit(setting)), lambda: self._view(shown, texts[1])
            )
            yield (shown := replace(shown, view=view, doing="measuring the damage"))
            shown = replace(shown, damage=self._once(("damage", _edit(setting)), lambda: self._damage(editor)))
        yield replace(shown, doing="")

    def _text(self, said: Sequence[tuple[str, str]], chat: bool) -> str:
        """What the model reads, if it is not too much.

        Raises:
            InputError: If there is nothing, or too much.
        """
        asked = said[-1][0]
        if not asked.strip():
            raise InputError("The prompt is empty. Type something, or choose an example.")
        if sum(len(one) + len(other) for one, other in said) > MOST_CHARACTERS or len(said) > MOST_TURNS:
            raise InputError(
                f"This page takes {MOST_CHARACTERS} characters and {MOST_TURNS} turns. Shorten it, or begin anew."
            )
        messages: list[Message] = []
        for one, other in said:
            messages += [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        text = chat_text(self.model, messages[:-1]) if chat else asked
        n, most = len(token_ids(self.model, text)), min(MOST_TOKENS, self.model.cfg.n_ctx - MOST_NEW_TOKENS)
        most = max(most, self.model.cfg.n_ctx // 2)
        if n > most:
            raise InputError(f"The prompt is {n} tokens long, and this page takes {most}. Shorten it, or begin anew.")
        return text

    def _answer(self, text: str, editor: Editor | None, setting: Setting) -> Iterator[str]:
        longest = min(setting.max_new_tokens, self.model.cfg.n_ctx - len(token_ids(self.model, text)))
        for answer in answer_as_it_comes(self.model, text, Asking(longest), editor=editor):
            yield answer.text

    def _view(self, shown: Shown, text: str) -> TokenView:
        assert shown.editor is not None
        answer = shown.turns[-1].edited
        return view_tokens(self.model, text, shown.editor, answer=answer, lens="next", damage=False)

    def _damage(self, editor: Editor) -> Damage | None:
        try:
            if self._meter is None:
                self._meter = DamageMeter.of(self.model, (), self.texts)
        except InputError:
            return None  # the tokenizer does not know the neutral sample
        return self._meter.measure(editor)

    def _once(self, key: Hashable, make: Callable[[], Found]) -> Found:
        """What was made before, or is made now, while nobody else uses the model."""
        with self.lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", SeaLensWarning)  # the page says it in its own words
            if key not in self._kept:
                self._keep(key, make())
            found: Found = self._kept[key]
            return found

    def _keep(self, key: Hashable, found: object) -> None:
        self._kept[key] = found
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _streamed(self, key: Hashable, make: Callable[[], Iterator[str]]) -> Iterator[str]:
        """Texts as they come. A thread of its own takes them, so that the model is free again though nobody listens."""
        if key in self._kept:
            yield self._kept[key]
            return
        parts: SimpleQueue[str | BaseException | None] = SimpleQueue()

        def work() -> None:
            try:
                with self.lock, warnings.catch_warnings():
                    warnings.simplefilter("ignore", SeaLensWarning)
                    said = ""
                    for said in make():
                        parts.put(said)
                    self._keep(key, said)
            except BaseException as error:
                parts.put(error)
            parts.put(None)

        Thread(target=work, daemon=True).start()
        while (part := parts.get()) is not None:
            if isinstance(part, BaseException):
                raise part
            yield part


SIDES = ("plain", "edited")


def _edit(setting: Setting) -> Hashable:
    """What decides what an editor does."""
    return setting.editor, setting.where, setting.strength, setting.first, setting.last
