"""Texts that are taken apart where they differ: CrowS-Pairs, StereoSet, and chosen and rejected answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sea_lens.data.chat import as_prompt
from sea_lens.data.items import CrowsPairsQuestion, Question, StereoSetQuestion
from sea_lens.data.records import Record, as_text
from sea_lens.errors import InputError
from sea_lens.wording import either


def parted(texts: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The words that all texts begin with, and the rest of each. A rest keeps at least one word.

    Example:
        >>> parted(["We like tea .", "We like milk ."])
        ('We like', ('tea .', 'milk .'))
    """
    words = [text.split() for text in texts]
    shortest = min(map(len, words))
    shared = next((i for i in range(shortest) if len({own[i] for own in words}) > 1), max(shortest - 1, 0))
    return " ".join(words[0][:shared]), tuple(" ".join(own[shared:]) for own in words)


# --- CrowS-Pairs -------------------------------------------------------------------------------------------------------

DIRECTIONS = ("stereo", "antistereo")
_DIRECTIONS: Mapping[object, str] = {0: "stereo", 1: "antistereo", "stereo": "stereo", "antistereo": "antistereo"}
_BIAS_TYPES = (
    "race-color",
    "socioeconomic",
    "gender",
    "disability",
    "nationality",
    "sexual-orientation",
    "physical-appearance",
    "religion",
    "age",
)


def read_crows_pairs(records: Iterable[Record], *, direction: str | None = None) -> Iterator[Question]:
    """CrowS-Pairs: the prompt is what both sentences begin with, right the less stereotyping rest and wrong the other.

    Args:
        records: Rows with `sent_more`, `sent_less`, `bias_type` and perhaps `stereo_antistereo`, as published (CSV), as JSON
            lines, or as Hugging Face has it (the last two as numbers).
        direction: The pairs to keep: `"stereo"`, `"antistereo"`, or None for both.

    Raises:
        InputError: If a column is missing, a sentence is empty, or both are the same (which line).
    """
    if direction not in (*DIRECTIONS, None):
        raise InputError(
            f'direction is "stereo", "antistereo" or {either("None", "none")} for both, and {direction!r} was given.'
        )
    for record in records:
        texts = record.text("sent_less"), record.text("sent_more")
        if not texts[0].split() or not texts[1].split() or texts[0].split() == texts[1].split():
            raise InputError(
                f"{record.where}: 'sent_more' and 'sent_less' must be two different sentences. Check this row."
            )
        kind = record.value("bias_type")
        is_number = type(kind) is int and 0 <= kind < len(_BIAS_TYPES)
        category = _BIAS_TYPES[int(str(kind))] if is_number else record.text("bias_type").strip()
        known = record.fields.get("stereo_antistereo") is not None
        own = record.one_of("stereo_antistereo", _DIRECTIONS) if known or direction else None
        if direction is not None and own != direction:
            continue
        shared, (less, more) = parted(texts)
        row = shared, (less,), (more,), category
        yield Question(*row) if own is None else CrowsPairsQuestion(*row, own)


# --- StereoSet ---------------------------------------------------------------------------------------------------------

TASKS = ("intrasentence", "intersentence")
_LABELS: Mapping[object, str] = {
    0: "anti-stereotype",
    1: "stereotype",
    2: "unrelated",
    **{name: name for name in ("anti-stereotype", "stereotype", "unrelated")},
}


def read_stereoset(
    records: Iterable[Record], *, task: str | None = None, shared: bool = False
) -> Iterator[StereoSetQuestion]:
    """StereoSet (Nadeem et al. 2021): right is the anti-stereotype, wrong the stereotype and the unrelated sentence.

    Between sentences the prompt is the context. Within a sentence it is empty, as the published score is of whole sentences.

    Args:
        records: The published `dev.json`, one object with `data`, or rows with `context`, `target`, `bias_type` and
            `sentences`, as Hugging Face has them.
        task: `"intrasentence"`, `"intersentence"`, or None for both.
        shared: Whether within a sentence the prompt is what the three sentences begin with, as fits need it.

    Raises:
        InputError: If a field is missing, or an item lacks one of its three sentences (which one).
    """
    if task not in (*TASKS, None):
        raise InputError(
            f'task is "intrasentence", "intersentence" or {either("None", "none")} for both, and {task!r} was given.'
        )
    for record in _stereoset_items(records):
        context = record.text("context").strip()
        own = TASKS[0] if "BLANK" in context else TASKS[1]
        if task in (own, None):
            by_label = _sentences(record)
            texts = tuple(by_label[label] for label in ("anti-stereotype", "stereotype", "unrelated"))
            prompt = context if own == TASKS[1] else ""
            if shared and own == TASKS[0]:
                prompt, texts = parted(texts)
            yield StereoSetQuestion(
                prompt, texts[:1], texts[1:], record.optional_text("bias_type"), record.text("target"), own
            )


def _stereoset_items(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        if "data" not in record.fields:
            yield record
            continue
        data = record.inside("data")
        for task in TASKS:
            for number, item in enumerate(data.listed(task)):
                where = f"{record.where}, {task} {number}"
                if not isinstance(item, Mapping):
                    raise InputError(f"{where}: expected an object.")
                yield Record(where, item)


def _sentences(record: Record) -> dict[str, str]:
    value = record.value("sentences")
    if isinstance(value, Mapping):  # columns, as Hugging Face has them
        inside = record.inside("sentences")
        texts, labels = inside.texts("sentence"), inside.listed("gold_label")
        value = [{"sentence": text, "gold_label": label} for text, label in zip(texts, labels, strict=False)]
    found = {}
    for number, one in enumerate(value if isinstance(value, (list, tuple)) else []):
        if not isinstance(one, Mapping):
            raise InputError(f"{record.where}: 'sentences' must hold objects with `sentence` and `gold_label`.")
        sentence = Record(f"{record.where}, sentence {number}", one)
        found[sentence.one_of("gold_label", _LABELS)] = sentence.text("sentence").strip()
    if len(found) != 3 or not all(found.values()):
        raise InputError(
            f"{record.where}: 'sentences' must hold an anti-stereotype, a stereotype and an unrelated sentence. "
            "Hidden test files have no `gold_label`; take dev.json."
        )
    return found


# --- preferences -------------------------------------------------------------------------------------------------------

_TURNS = ("\n\nAssistant:",)
"""What an answer comes after in conversations that are one text (hh-rlhf)."""


def read_preferences(records: Iterable[Record]) -> Iterator[Question]:
    r"""Chosen and rejected answers, as for DPO: chosen is right, rejected wrong.

    Without a prompt (TRL's implicit prompt), the prompt is what both begin with: whole messages, the turns of a conversation
    up to its last `Assistant:`, or whole words. Messages stay a conversation, which `with_chat_template` puts into the
    model's form.

    Args:
        records: Rows with `chosen`, `rejected` and perhaps `prompt`, each text or a list of messages with `role` and
            `content`.

    Raises:
        InputError: If a field is missing or is neither, the answers are no single message of the assistant, or both are the
            same (which line).
    """
    for record in records:
        sides = [record.value("chosen"), record.value("rejected")]
        given = record.fields.get("prompt")
        if all(isinstance(side, str) for side in sides):
            prompt, chosen, rejected = _of_texts(record, given)
        else:
            prompt, chosen, rejected = _of_messages(record, given)
        if chosen.strip() == rejected.strip():
            raise InputError(f"{record.where}: 'chosen' and 'rejected' are the same. Delete the row.")
        yield Question(prompt, (chosen,), (rejected,))


def _of_texts(record: Record, given: object) -> tuple[str, str, str]:
    chosen, rejected = record.text("chosen"), record.text("rejected")
    if given is not None:
        prompt = as_prompt(given, f"{record.where}: 'prompt'")
        cut = len(prompt) if chosen.startswith(prompt) and rejected.startswith(prompt) else 0
        return prompt, chosen[cut:], rejected[cut:]
    same = _shared(chosen, rejected)
    cut = max((chosen.rfind(turn, 0, same) + len(turn) for turn in _TURNS if turn in chosen[:same]), default=0)
    if not cut:
        cut = max(chosen.rfind(" ", 0, same + 1), chosen.rfind("\n", 0, same + 1), 0)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _of_messages(record: Record, given: object) -> tuple[str, str, str]:
    chosen, rejected = (_messages(record.value(side), f"{record.where}: {side!r}") for side in ("chosen", "rejected"))
    shared = _shared(chosen, rejected)
    rests = chosen[shared:], rejected[shared:]
    if any(len(rest) != 1 or rest[0]["role"] != "assistant" for rest in rests):
        raise InputError(
            f"{record.where}: 'chosen' and 'rejected' must differ in one last message of the assistant each. Cut the "
            "conversations after the first answer that differs."
        )
    before = chosen[:shared]
    prompt = as_prompt(before if before or given is None else given, f"{record.where}: 'prompt'")
    return prompt, rests[0][0]["content"], rests[1][0]["content"]


def _shared(first: Sequence[object], second: Sequence[object]) -> int:
    """How many entries at the beginning are the same."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _messages(value: object, name: str) -> list[dict[str, str]]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, Mapping) for one in value):
        raise InputError(f"{name} must be text or a list of messages with `role` and `content`.")
    return [{key: as_text(one.get(key), f"{name}, {key!r}") for key in ("role", "content")} for one in value]
