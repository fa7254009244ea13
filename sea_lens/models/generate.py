"""The model's own answers: greedy ones of many prompts, and what it says to texts and conversations."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from sea_lens.arguments import check_arguments
from sea_lens.data.chat import Answer, Conversation, Message, chat_text
from sea_lens.data.demonstrations import answers_prompts
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.answering import Asking, answer_prompts
from sea_lens.models.bridge import EditsModels, Model, check_is_model
from sea_lens.models.sampling import Sampling
from sea_lens.wording import either, setting


def greedy_answers(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int = 32,
    *,
    editor: EditsModels | None = None,
    stop: Sequence[str] = ("\n",),
    batch_size: int = 16,
    share_prefix: bool = True,
    folder: str | Path | None = None,
    progress: bool = True,
) -> list[str]:
    """The model's own most likely continuation of every prompt.

    Hooks that are on the model act, so under `editor.attached(model)` these are the edited answers. An answer ends at a stop
    string, at the tokenizer's end token, or at any other that the model's configurations name. Of a model that reasons before
    it answers, it is what comes after the trace.

    Args:
        model: A TransformerBridge with a tokenizer.
        prompts: Texts to continue.
        max_new_tokens: Longest answer, in tokens, a reasoning trace among them.
        editor: To edit the model with; None for none.
        stop: Strings that end an answer, cut off with all after them. White space before the answer is dropped.
        batch_size: Prompts in one forward pass. It does not change the answers, apart from rounding.
        share_prefix: Whether to run a beginning that all prompts share once, where the model allows it. Under hooks of your
            own, which might look at other tokens, every prompt is run whole.
        folder: Where to keep answers as they come, by model, editor and prompts. A run that was killed goes on there.
        progress: Whether to show a progress bar.

    Returns:
        One answer per prompt, in order.

    Raises:
        InputError: If a prompt is a conversation, or does not fit the model's context with its answer.

    Warns:
        SeaLensWarning: If reasoning traces are not over within `max_new_tokens`. Such an answer is the trace so far.
    """
    check_is_model(model)
    asking = Asking(max_new_tokens, stop, batch_size=batch_size, share_prefix=share_prefix)
    answers = answer_prompts(model, prompts, asking, editor=editor, folder=folder, progress=progress)
    _warn_of_reasoning(answers, max_new_tokens)
    return [answer.text for answer in answers]


@answers_prompts
def _neutral_answers(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    batch_size: int,
    folder: str | Path | None,
    progress: bool,
) -> list[Answer]:
    """Greedy answers, with how each ended."""
    check_is_model(model)
    asking = Asking(max_new_tokens, ("\n",), batch_size=batch_size)
    answers = answer_prompts(model, prompts, asking, folder=folder, progress=progress)
    _warn_of_reasoning(answers, max_new_tokens, stacklevel=4)
    return answers


def _warn_of_reasoning(answers: Sequence[Answer], max_new_tokens: int, stacklevel: int = 3) -> None:
    n = sum(answer.ending == "reasoning" for answer in answers)
    if n:
        warnings.warn(
            f"{n} of {len(answers)} answers are reasoning traces that were not over after {max_new_tokens} tokens. Turn the "
            "reasoning off, "
            + either(
                "with with_chat_template(model, enable_thinking=False)", "with --chat-option enable_thinking=false"
            )
            + f" or as the model's card says, or raise {setting('max_new_tokens')}.",
            SeaLensWarning,
            stacklevel=stacklevel,
        )


@overload
def generate(
    model: Model, prompt: str | Sequence[Message], editor: EditsModels | None = None, **options: Any
) -> str: ...


@overload
def generate(
    model: Model, prompt: Sequence[str | Sequence[Message]], editor: EditsModels | None = None, **options: Any
) -> list[str]: ...


def generate(  # type: ignore[misc]  # the options are those below
    model: Model,
    prompt: str | Sequence[Message] | Sequence[str | Sequence[Message]],
    editor: EditsModels | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    system: str | None = None,
    chat_options: Mapping[str, object] | None = None,
    keep_reasoning: bool = True,
    batch_size: int = 16,
) -> str | list[str]:
    """The model's continuation of a text, or its answer in a conversation; or those of several.

    A conversation goes into the tokenizer's chat template, and the beginning token stands before it once. An answer ends at
    the end tokens of the tokenizer and of the model's configurations.

    Example:
        >>> sl.generate(model, "<plain> Q Mira home A", max_new_tokens=1)
        'Lyon'
        >>> sl.generate(model, ["<plain> Q Mira home A", "<plain> Q Mira pet A"], editor, max_new_tokens=1)
        ['Quito', 'llama']

    Args:
        model: A TransformerBridge with a tokenizer. Hooks that are on it act, too.
        prompt: A text to continue, a conversation as a list of messages, or a list of texts and conversations.
        editor: To edit the model with; None for none.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 for the most likely answer; above, tokens are drawn.
        top_p: Draws among the likeliest tokens whose probabilities sum to this.
        top_k: Draws among this many of the likeliest tokens; 0 for all.
        seed: Of the draws. In a list, prompt number i draws with `seed + i`, as it does alone with that seed. No generator of
            torch's or Python's own is touched.
        stop: Strings that end an answer, cut off with all after them.
        system: A system message for every conversation.
        chat_options: Switches of the chat template, such as `{"enable_thinking": False}`.
        keep_reasoning: Whether a reasoning trace (`<think>...</think>`) stays in the answer. Stop strings do not count in it.
        batch_size: Prompts in one forward pass. It does not change the answers, apart from rounding.

    Returns:
        One answer for a text or a conversation; a list for a list.

    Raises:
        InputError: If a prompt does not fit the model's context, or the tokenizer has no chat template for a conversation or
            its template no such switch.

    Warns:
        SeaLensWarning: If a trace that is to be left out is not over within `max_new_tokens`.
    """
    check_arguments(generate, {name: value for name, value in locals().items() if name not in ("prompt", "editor")})
    if isinstance(prompt, Sequence) and not all(isinstance(one, str | Sequence | Mapping) for one in prompt):
        raise InputError(
            "Prompts are texts or conversations (lists of messages), and a list of something else was given."
        )
    if editor is not None and not isinstance(editor, EditsModels):
        raise InputError(
            f"The order is (model, prompt, editor), and a {type(editor).__name__} was given as editor. Other settings, such "
            "as max_new_tokens, go by name."
        )
    sampling = Sampling(temperature, top_p, top_k, seed)
    asking = Asking(max_new_tokens, stop, keep_reasoning, sampling, batch_size)
    alone, prompts = _several(prompt)
    chats = [not isinstance(one, str) or isinstance(one, Conversation) for one in prompts]
    if not any(chats) and (system is not None or chat_options):
        raise InputError('system and chat_options are for conversations. Give [{"role": "user", "content": prompt}].')
    texts = [
        chat_text(model, one, system, chat_options) if is_chat else str(one)
        for one, is_chat in zip(prompts, chats, strict=True)
    ]
    answers = answer_prompts(model, texts, asking, editor=editor, progress=False)
    if not keep_reasoning:
        _warn_of_reasoning(answers, max_new_tokens)
    found = [answer.text for answer in answers]
    return found[0] if alone else found


def _several(prompt: Any) -> tuple[bool, list[Any]]:
    """Whether one prompt was given, and the prompts as a list.

    Raises:
        InputError: If it is neither a text nor a conversation nor a list of them.
    """
    if isinstance(prompt, str):
        return True, [prompt]
    if not isinstance(prompt, Sequence) or not prompt:
        raise InputError(
            "A prompt is a text, a conversation (a list of messages), or a list of them that is not empty, and "
            f"{prompt!r} was given."
        )
    if all(isinstance(one, Mapping) for one in prompt):
        return True, [prompt]
    return False, [one if isinstance(one, str) else Conversation(one) for one in prompt]
