"""What separates positives from negatives besides meaning: length, final punctuation, duplicates, truncation.

HaluEval's right answers are two words without a full stop, its hallucinated ones ten words with one, so an edit fitted
on them as published learns punctuation. This report says such things before any model is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import pandas as pd

from sea_lens.models import Model, TokenizedAnswer

LENGTH_RATIO = 1.5
ENDING_GAP = 0.2
LENGTH_SEPARATES = 0.75


@dataclass(frozen=True)
class DemonstrationCheck:
    """The report of `Demonstrations.check`; print it.

    Attributes:
        table: One row a role (positive, negative, neutral): median length, final punctuation, empty answers.
        findings: Plain sentences, each a confound or a defect with its remedy; empty when nothing was found.
        unit: What lengths are counted in, `"tokens"` or `"words"`.
        n: Number of demonstrations.
        length_separates: Share of pairs (ties count half) told apart by length alone; 0.5 means length says nothing.
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    unit: str
    n: int
    length_separates: float

    @classmethod
    def of(
        cls, prompts: Sequence[str], answers: Mapping[str, Sequence[str]], model: Model | None = None
    ) -> DemonstrationCheck:
        """Measures answers by role (`"positive"`, `"negative"`, ...); lengths in the model's tokens if given."""
        unit = "words" if model is None else "tokens"
        lengths, too_long = {}, 0
        for role, texts in answers.items():
            if model is None:
                lengths[role] = [len(text.split()) for text in texts]
            else:
                pairs = [TokenizedAnswer.of(model, *pair) for pair in zip(prompts, texts, strict=True)]
                lengths[role] = [len(pair.ids) - pair.answer_start for pair in pairs]
                too_long += sum(len(pair.ids) > model.cfg.n_ctx for pair in pairs)
        table = pd.DataFrame(
            {
                f"median length ({unit})": {role: float(median(values)) for role, values in lengths.items()},
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
            *_length_findings(table.iloc[:, 0], unit, separates, longer),
            *_ending_findings(table["ends in . ! ?"]),
            *_row_findings(list(zip(prompts, answers["positive"], answers["negative"], strict=True))),
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
        return cls(table, tuple(findings), unit, len(prompts), separates)

    def __str__(self) -> str:
        lines = [f"{self.n} demonstrations", self.table.round(2).to_string()]
        lines += [f"! {finding}" for finding in self.findings] or ["Nothing but meaning was found to separate them."]
        return "\n".join(lines)

    __repr__ = __str__


def _length_findings(lengths: pd.Series[float], unit: str, separates: float, longer_share: float) -> list[str]:
    positive, negative = lengths["positive"], lengths["negative"]
    ratio = max(positive, negative) / max(min(positive, negative), 1.0)  # a median of 0 is a matter of empty answers
    if ratio < LENGTH_RATIO and separates < LENGTH_SEPARATES:
        return []
    negative_longer = longer_share > 0.5 if positive == negative else negative > positive
    longer, shorter = ("Negatives", "positives") if negative_longer else ("Positives", "negatives")
    return [
        f"{longer} are {ratio:.1f} times as long as {shorter} ({max(positive, negative):.0f} against "
        f"{min(positive, negative):.0f} {unit} in the median), and length alone tells {separates:.0%} of pairs apart. "
        "The edit may learn length: choose completions of like length."
    ]


def _ending_findings(endings: pd.Series[float]) -> list[str]:
    positive, negative = endings["positive"], endings["negative"]
    if abs(positive - negative) < ENDING_GAP:
        return []
    return [
        f"{positive:.0%} of positives and {negative:.0%} of negatives end in a period (or ! or ?), so the last token "
        'separates punctuation. Use with_answer_ending("."), or collect with token="last_content".'
    ]


def _row_findings(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    same = sum(positive.strip() == negative.strip() for _, positive, negative in rows)
    repeated = len(rows) - len(set(rows))
    findings = []
    if same:
        findings.append(f"{same} rows have a positive equal to their negative; they teach nothing. Drop them.")
    if repeated:
        findings.append(f"{repeated} rows repeat an earlier row; they count twice. Drop them unless that is meant.")
    return findings
