"""What is scored must not have been fitted or tuned on: prompts that are asked on both sides are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.questions import Questions
from sea_lens.errors import InputError
from sea_lens.wording import either

LEAST_WORDS = 4
"""Prompts of fewer words are compared whole: within a longer prompt they say little."""


def check_apart(demonstrations: Demonstrations, fitting: Iterable[object], held_out: Questions) -> None:
    """Refuses to score on what was fitted or tuned on, also where one of the two stands in a template.

    Args:
        demonstrations: Fitted on.
        fitting: Questions to tune by; none for none.
        held_out: To be scored on.

    Raises:
        InputError: If a prompt of `held_out` is one of the others.
    """
    known = {_plain(str(row.prompt)) for row in demonstrations}  # PromptRows have prompts
    known |= {_plain(str(getattr(row, "prompt", row))) for row in fitting}
    long_ones = [text for text in known if text.count(" ") >= LEAST_WORDS + 1]
    shared = 0
    for row in held_out:
        asked = _plain(str(row.prompt))
        long = asked.count(" ") >= LEAST_WORDS + 1
        shared += asked in known or (long and any(one in asked or asked in one for one in long_ones))
    if shared:
        raise InputError(
            f"{shared} of {len(held_out)} held-out questions are asked in the demonstrations or the fitting questions, so "
            "their score says nothing. "
            + either("Leave them out, as questions.split() does.", "Leave them out of one of the files.")
        )


def _plain(prompt: str) -> str:
    """The words of a prompt in lower case, with a space before and after, so that only whole words are found in others."""
    words = re.findall(r"\w+", prompt.lower())
    if words[:1] == ["q"] and words[-1:] == ["a"]:
        words = words[1:-1]
    return f" {' '.join(words)} "
