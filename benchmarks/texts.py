"""Texts of the shape of published data, of words that the package ships: chats like HaluEval's, questions like TruthfulQA's.

Lengths are those of the files under SmolLM2's tokenizer. HaluEval QA: questions of 24 tokens (standard deviation 13), answers
of 4 and 15. TruthfulQA: 18 tokens (7) with `Q:` and `A:`, 3.5 right and 4.1 wrong answers of 10 tokens (5.4), many of which
begin alike: 27 % of their tokens stand at the beginning of another answer to the same question.
"""

from __future__ import annotations

import random
import re
from importlib.resources import files

from transformers import PreTrainedTokenizerBase

from sea_lens import Demonstration, Demonstrations, Question, Questions


def chat_demonstrations(tokenizer: PreTrainedTokenizerBase, n: int) -> Demonstrations:
    """Questions of some 20 tokens in the chat template, each with three answers of some 12 tokens that share nothing."""
    draw, words = random.Random(0), _words(tokenizer)
    rows = []
    for _ in range(n):
        asked = _sentence(draw, words, 16, 8, 5) + "?"
        message = [{"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        answers = [_sentence(draw, words, 8.5, 4, 2) + "." for _ in range(3)]
        rows.append(Demonstration(str(prompt), *answers))
    return Demonstrations(tuple(rows), "benchmark")


def truthfulqa(tokenizer: PreTrainedTokenizerBase, n: int, shots: str = "") -> Questions:
    """Questions with their answers, after `shots`."""
    draw, words = random.Random(0), _words(tokenizer)
    rows = []
    for _ in range(n):
        asked = f"{shots}Q: {_sentence(draw, words, 9, 7.5, 3)}?\nA:"
        answers: list[str] = []
        right, wrong = round(draw.triangular(1, 7, 2.5)), round(draw.triangular(2, 7, 3.5))
        for _ in range(right + wrong):
            own = _sentence(draw, words, 4.8, 5.8, 1).split(" ")
            if answers and draw.random() < 0.33:  # as another answer begins
                other = draw.choice(answers)[:-1].split(" ")
                alike = draw.randint(1, max(1, len(other) - 1))
                own = [*other[:alike], *own[alike:]]
            answers.append(" ".join(own) + ".")
        rows.append(Question(asked, tuple(answers[:right]), tuple(answers[right:])))
    return Questions(tuple(rows), "benchmark")


def _words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Those of the shipped texts that are one token."""
    text = (files("sea_lens.data") / "neutral.txt").read_text(encoding="utf-8")
    found = sorted(set(re.findall(r"[a-z]+", text)))
    return [word for word in found if len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1]


def _sentence(draw: random.Random, words: list[str], mean: float, deviation: float, least: int) -> str:
    n = max(least, round(draw.gauss(mean, deviation)))
    return " ".join(draw.choice(words) for _ in range(n)).capitalize()
