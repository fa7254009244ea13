"""BBQ files as published, read once for demonstrations and questions alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sea_lens.errors import InputError
from sea_lens.records import read_json_objects


@dataclass(frozen=True)
class BBQQuestion:
    """One row of a BBQ file.

    Attributes:
        prompt: The context and the question.
        gold: The right answer.
        wrong: The other two.
        category: What the bias is about, such as `Age`; None if the file does not say.
    """

    prompt: str
    gold: str
    wrong: tuple[str, str]
    category: str | None


def read_bbq(path: str | Path, context_condition: str | None) -> list[BBQQuestion]:
    """Reads the rows of one context condition, in file order.

    Args:
        path: A `.jsonl` file with `context`, `question`, `ans0` to `ans2`, `label` and `context_condition`.
        context_condition: `"disambig"`, `"ambig"`, or None for both.

    Raises:
        FileFormatError: If the file is malformed (which line).
        InputError: If a field is missing or impossible.
    """
    if context_condition not in ("disambig", "ambig", None):
        raise InputError(
            f'context_condition is "disambig", "ambig" or None for both, and {context_condition!r} was given.'
        )
    questions = []
    for record in read_json_objects(path):
        if context_condition is not None and record.text("context_condition") != context_condition:
            continue
        label = record.fields.get("label")
        if label not in (0, 1, 2):
            raise InputError(f"{record.where}: `label` must be 0, 1 or 2, and is {label!r}. Is this a BBQ file?")
        gold, first, second = [record.text(f"ans{i}") for i in sorted(range(3), key=lambda index: index != label)]
        prompt = f"{record.text('context')} {record.text('question')}"
        questions.append(BBQQuestion(prompt, gold, (first, second), record.optional_text("category")))
    return questions
