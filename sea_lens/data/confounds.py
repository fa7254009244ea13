"""What separates positives from negatives besides meaning: length, final punctuation, duplicates, truncation.

HaluEval's right answers are two words without a full stop, its hallucinated ones ten words with one, so an edit fitted
on them as published learns punctuation. This report says such things before any model is run.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd

from sea_lens.models.bridge import Model
from sea_lens.models.tokens import TokenizedAnswer

LENGTH_RATIO = 1.5
ENDING_GAP = 0.2
LENGTH_SEPARATES = 0.75


@dataclass(frozen=True)
class DemonstrationCheck:
    """The report of `Demonstrations.check`; print it.

    Attributes:
        table: One row a role (positive, negative, neutral): mean words and, given a model, mean tokens; final punctuation;
            empty answers.
        findings: Plain sentences, each a confound or a defect with its remedy; empty when nothing was found.
        n: Number of demonstrations.
        length_separates: Share of pairs (ties count half) that length alone tells apart; 0.5 says nothing.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    n: int
    length_separates: float

    @classmethod
    def of(
        cls, prompts: Sequence[str], answers: Mapping[str, Sequence[str]], model: Model | None = None
    ) -> DemonstrationCheck:
        """Measures answers by role (`"positive"`, `"negative"`, ...); lengths in its tokens too if a model is given."""
        words = {role: array("l", (len(text.split()) for text in texts)) for role, texts in answers.items()}
        lengths, too_long = words, 0
        columns = {"mean words": {role: fmean(values) for role, values in words.items()}}
        if model is not None:
            lengths = {role: array("l") for role in answers}
            for role, texts in answers.items():
                for prompt, completion in zip(prompts, texts, strict=True):
                    text = TokenizedAnswer.of(model, prompt, completion)
                    lengths[role].append(len(text.ids) - text.answer_start)
                    too_long += len(text.ids) > model.cfg.n_ctx
            columns["mean tokens"] = {role: fmean(values) for role, values in lengths.items()}
        table = pd.DataFrame(
            {
                **columns,
                "ends in . ! ?": {
                    role: fmean(answer.rstrip().endswith((".", "!", "?")) for answer in values)
                    for role, values in answers.items()
                },
                "empty": {role: sum(not answer.strip() for answer in values) for role, values in answers.items()},
            }
        )
        longer = fmean((n > p) + 0.5 * (n == p) for p, n in zip(lengths["positive"], lengths["negative"], strict=True))
        separates = max(longer, 1 - longer)
        findings = [
            *_length_findings(table, separates, longer),
            *_ending_findings(table["ends in . ! ?"]),
            *_row_findings(zip(prompts, answers["positive"], answers["negative"], strict=True)),
            *(
                f"{count} {role} completions are empty, so their last token is the prompt's. Drop those rows."
                for role, count in table["empty"].items()
                if count
            ),
        ]
        if model is not None and too_long:
            findings.append(
                f"{too_long} texts are longer than the model's context of {model.cfg.n_ctx} tokens and cannot be read "
                "whole. Shorten or drop them."
            )
        return cls(table, tuple(findings), len(prompts), separates)

    def __str__(self) -> str:
        lines = [f"{self.n} demonstrations", self.table.round(2).to_string()]
        lines += [f"! {finding}" for finding in self.findings] or ["Nothing but meaning was found to separate them."]
        return "\n".join(lines)

    __repr__ = __str__


def _length_findings(table: pd.DataFrame, separates: float, longer_share: float) -> list[str]:
    for column in [name for name in ("mean words", "mean tokens") if name in table]:
        positive, negative = float(table[column]["positive"]), float(table[column]["negative"])
        ratio = max(positive, negative) / max(min(positive, negative), 1.0)  # below 1 is a matter of empty answers
        if ratio >= LENGTH_RATIO:
            break
    else:
        if separates < LENGTH_SEPARATES:
            return []
    negative_longer = longer_share > 0.5 if positive == negative else negative > positive
    longer, shorter = ("negative", "positive") if negative_longer else ("positive", "negative")
    counts = "; ".join(
        f"{table[column][longer]:.1f} against {table[column][shorter]:.1f} {column.removeprefix('mean ')}"
        for column in ("mean words", "mean tokens")
        if column in table
    )
    return [
        f"{longer.capitalize()}s are {ratio:.1f} times as long as {shorter}s ({counts} on average), and length alone tells "
        f"{separates:.0%} of pairs apart. The edit may learn length: choose completions of like length."
    ]


def _ending_findings(endings: pd.Series[float]) -> list[str]:
    positive, negative = endings["positive"], endings["negative"]
    if abs(positive - negative) < ENDING_GAP:
        return []
    return [
        f"{positive:.0%} of positives and {negative:.0%} of negatives end in a period (or ! or ?), so the last token "
        'separates punctuation. Use with_answer_ending("."), or collect with token="last_content".'
    ]


def _row_findings(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    same, hashes = 0, array("q")  # 8 bytes a row, and no set of all texts
    for row in rows:
        same += row[1].strip() == row[2].strip()
        digest = hashlib.blake2b(repr(row).encode(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little", signed=True))
    repeated = len(hashes) - len(np.unique(np.frombuffer(hashes, np.int64)))
    findings = []
    if same:
        findings.append(f"{same} rows have a positive equal to their negative; they teach nothing. Drop them.")
    if repeated:
        findings.append(f"{repeated} rows repeat an earlier row; they count twice. Drop them unless that is meant.")
    return findings
