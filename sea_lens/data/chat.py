"""Conversations as prompts: chat messages, the tokenizer's chat template around them, and what a model answered."""

from __future__ import annotations

import json
import re
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from sea_lens.arguments import follows
from sea_lens.data.records import as_text
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.wording import either, setting

Message = Mapping[str, Any]
"""A chat message: `{"role": "user", "content": "Where?"}`."""
Ending = Literal["end", "stop", "length", "reasoning"]
"""How an answer ended: at an end token, at a stop string, cut at its longest, or before a reasoning trace was over."""
SENTENCES = re.compile("(?s).*[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u2019)\\]]*(?=\\s|$)")
"""A text up to the end of its last whole sentence."""
TAKEN = frozenset({"conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message"})
"""Keywords of `apply_chat_template` that are ours to settle."""


@runtime_checkable
class Tokenizer(Protocol):
    """What we use of a Hugging Face tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    @property
    def all_special_ids(self) -> list[int]: ...

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: Literal[False], **options: Any
    ) -> str: ...


@runtime_checkable
class HasTokenizer(Protocol):
    """What data needs of a model: its tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...


Tokenizing = Tokenizer | HasTokenizer
"""A tokenizer, or a model that has one."""


def tokenizer_of(model: Tokenizing) -> Tokenizer:
    """The tokenizer of a model; a tokenizer itself comes back.

    Raises:
        ModelMismatchError: If the model has no tokenizer, or something else was given.
    """
    found = model.tokenizer if follows(model, HasTokenizer) else model
    if found is None:
        raise ModelMismatchError(
            "This model has no tokenizer, so text cannot be given to it. Load it with load_model(..., tokenizer=...), or "
            "use Activations.from_tensors."
        )
    if not follows(found, Tokenizer):
        raise ModelMismatchError(
            f"A TransformerBridge or a Hugging Face tokenizer is needed, and a {type(found).__name__} was given. Load one "
            "with sea_lens.load_model(name)."
        )
    return found


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: The answer.
        ending: How it ended.
    """

    text: str
    ending: Ending


@dataclass(frozen=True)
class PromptForm:
    """What prompts were put into and how answers end, so that nobody has to say it again.

    Attributes:
        template: The prompt template; None for none.
        chat: Whether they are in the tokenizer's chat template.
        system: Its system message.
        chat_options: Its switches.
        answer_ending: What every answer ends in; None for whatever it is.
        max_new_tokens: The longest neutral answer, in tokens; None where the model gave none.
        whole_sentences: Whether neutral answers that were cut went back to their last whole sentence.
    """

    template: str | None = None
    chat: bool = False
    system: str | None = None
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    answer_ending: str | None = None
    max_new_tokens: int | None = None
    whole_sentences: bool = False

    def __post_init__(self) -> None:
        texts = (self.template, self.system, self.answer_ending)
        if (
            not all(text is None or isinstance(text, str) for text in texts)
            or not isinstance(self.chat, bool)
            or not isinstance(self.whole_sentences, bool)
            or not isinstance(self.chat_options, Mapping)
            or not (self.max_new_tokens is None or type(self.max_new_tokens) is int)
        ):
            raise InputError(f"This is no form of prompts: {reprlib.repr(vars(self))}.")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; a switch of another type as its text."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any] | None) -> PromptForm | None:
        """Reads what `to_json` made; None for None.

        Raises:
            TypeError: If it has other names.
            InputError: If a value is of another type.
        """
        return None if plain is None else cls(**plain)

    def __str__(self) -> str:
        """For people, on one line."""
        told = [] if self.template is None else [repr(self.template)]
        if self.chat:
            switches = "".join(f", {name} {value}" for name, value in self.chat_options.items())
            told.append(
                f"chat template{'' if self.system is None else f' with system message {self.system!r}'}{switches}"
            )
        told += [] if self.answer_ending is None else [f"answers end in {self.answer_ending!r}"]
        told += [] if self.max_new_tokens is None else [f"neutral answers of at most {self.max_new_tokens} tokens"]
        told += ["cut to whole sentences"] if self.whole_sentences else []
        return ", ".join(told) or "as they were given"


class Conversation(str):
    """Chat messages as a prompt: their JSON until `with_chat_template` puts them into a model's own form.

    Example:
        >>> prompt = Conversation([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}])
        >>> prompt.messages[1]["content"]
        'Where?'
    """

    __slots__ = ()

    def __new__(cls, messages: Sequence[Message]) -> Conversation:
        """Of messages.

        Args:
            messages: Each with `"role"` and `"content"` (or, as in ShareGPT's files, `"from"` and `"value"`).

        Raises:
            InputError: If a message has another form.
        """
        if not messages:
            raise InputError("A conversation has no messages. Give at least one of the user.")
        known = [_message(message, number) for number, message in enumerate(messages)]
        return super().__new__(cls, json.dumps(known, ensure_ascii=False))

    def __getnewargs__(self) -> tuple[list[Message]]:  # type: ignore[override]
        return (self.messages,)

    @property
    def messages(self) -> list[Message]:
        """The messages."""
        found: list[Message] = json.loads(str(self))
        return found


SHAREGPT = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant"}


def _message(message: object, number: int) -> dict[str, Any]:
    if isinstance(message, Mapping) and "from" in message and "value" in message:
        role = message["from"]
        message = {"role": SHAREGPT.get(role, role) if isinstance(role, str) else role, "content": message["value"]}
    if not isinstance(message, Mapping):
        raise InputError(f"Message {number} of a conversation must be a mapping, and is {reprlib.repr(message)}.")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(message.get("role"), str) or not isinstance(content, str):
        raise InputError(
            f"Message {number} of a conversation must have a text as role and as content, and is {reprlib.repr(message)}."
        )
    return {**message, "content": content}


def as_prompt(value: object, name: str) -> str:
    """A prompt: a text as it is, or a list of chat messages as a `Conversation`; `name` is what an error calls it.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(value, str):
        return as_text(value, name)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        try:
            return Conversation(value)
        except InputError as error:
            raise InputError(f"{name} must be text or a list of chat messages. {error}") from error
    raise InputError(f"{name} must be text or a list of chat messages, and is {reprlib.repr(value)}.")


def check_rendered(texts: Sequence[str]) -> None:
    """Refuses conversations where a model is about to read texts.

    Raises:
        InputError: If one is among them.
    """
    odd = next((number for number, text in enumerate(texts) if isinstance(text, Conversation)), None)
    if odd is not None:
        raise InputError(
            f"Prompt {odd} is a conversation, which a model reads in its own form. "
            + either("Call with_chat_template(model) first.", "Give --chat.")
        )


def chat_text(
    tokenizer: Tokenizing,
    prompt: str | Sequence[Message],
    system: str | None = None,
    options: Mapping[str, object] | None = None,
) -> str:
    """A conversation in the tokenizer's chat template, up to where the assistant's answer begins.

    Args:
        tokenizer: A tokenizer with a chat template, or the model that has it.
        prompt: A `Conversation` or its messages; a text is what a user says. Where the last message is the assistant's, the
            answer goes on in it.
        system: A system message to begin with.
        options: Switches of the template, such as `{"enable_thinking": False}`.

    Raises:
        InputError: If the tokenizer has no chat template, the template has no such switch, refuses the messages or leaves the
            system message out.
    """
    found = tokenizer_of(tokenizer)
    template = getattr(found, "chat_template", None)
    if not template:
        raise InputError(
            "This tokenizer has no chat template. "
            + either(
                "Use with_prompt_template(...), or give a plain text.",
                "Leave --chat out; --template gives one of your own.",
            )
        )
    switches = dict(options or {})
    written = template if isinstance(template, str) else json.dumps(template)
    unknown = [name for name in switches if name in TAKEN or not re.search(rf"\b{re.escape(name)}\b", written)]
    if unknown:
        raise InputError(f"This chat template has no switch {', '.join(map(repr, unknown))}. Leave it out.")
    if isinstance(prompt, str) and not isinstance(prompt, Conversation):
        prompt = [{"role": "user", "content": prompt}]
    messages: list[dict[str, Any]] = json.loads(
        str(prompt if isinstance(prompt, Conversation) else Conversation(prompt))
    )
    if system is not None:
        if any(message["role"] == "system" for message in messages):
            raise InputError(f"The conversation has a system message already. Leave {setting('system')} out.")
        messages.insert(0, {"role": "system", "content": system})
    goes_on = messages[-1]["role"] == "assistant"
    how = {"continue_final_message": True} if goes_on else {"add_generation_prompt": True}
    try:
        text = found.apply_chat_template(messages, tokenize=False, **how, **switches)
    except Exception as error:  # templates raise jinja2 errors of their own making
        raise InputError(f"The chat template refused these messages: {error}") from error
    told = [message["content"] for message in messages if message["role"] == "system"]
    if any(content.strip() not in text for content in told):
        raise InputError("This chat template leaves the system message out. Put it into the first user message.")
    return text


def neutral_texts(answers: Sequence[Answer], max_new_tokens: int, whole_sentences: bool = False) -> list[str]:
    """The texts of a model's own answers, as `Demonstrations.with_neutral_answers` takes them.

    Args:
        answers: The answers.
        max_new_tokens: How long they might be.
        whole_sentences: Whether one that was cut goes back to the end of its last whole sentence, if it has one.

    Warns:
        SeaLensWarning: If answers are cut in a sentence, unless they are single tokens.
    """
    texts, cut = [answer.text for answer in answers], []
    for number, answer in enumerate(answers):
        if answer.ending == "length":
            whole = SENTENCES.match(answer.text) if whole_sentences else None
            if whole:
                texts[number] = whole[0]
            else:
                cut.append(number)
    if cut and max_new_tokens > 1:
        how = "" if whole_sentences else f", or give {setting('whole_sentences', True)}"
        warnings.warn(
            f"{len(cut)} of {len(answers)} neutral answers were cut at {max_new_tokens} tokens (first: demonstration "
            f"{cut[0]}, {reprlib.repr(texts[cut[0]])}), so that an ending would stand behind half a sentence. Raise "
            f"{setting('max_new_tokens')}{how}.",
            SeaLensWarning,
            stacklevel=3,
        )
    return texts
