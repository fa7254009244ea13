"""What separates the sides of demonstrations besides meaning: length, punctuation, looks, recurring words, duplicates.

HaluEval's right answers are two words without a full stop and its hallucinated answers ten words with one, so an edit
fitted on them as published learns punctuation. The check reports this before any model runs.
"""

from __future__ import annotations

import hashlib
import html
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from sea_lens.arguments import follows
from sea_lens.data.chat import HasTokenizer, Tokenizer, tokenizer_of
from sea_lens.data.prompts import join
from sea_lens.data.surface import EXAMINED, copied, letters, looks, plural, recurring, sides_of
from sea_lens.results import Result
from sea_lens.wording import either, setting

LENGTH_RATIO = 1.5
ENDING_GAP = 0.2
LENGTH_SEPARATES = 0.75
ROWS_AT_ONCE = 64
"""Demonstrations tokenized per call. Bounds memory."""


@runtime_checkable
class ContextConfig(Protocol):
    """What a check reads of `model.cfg`."""

    n_ctx: int
    default_prepend_bos: bool


@runtime_checkable
class ReadsTexts(HasTokenizer, Protocol):
    """What a check needs of a model."""

    @property
    def cfg(self) -> ContextConfig:
        """The model's configuration."""


@dataclass(frozen=True, repr=False)
class DemonstrationCheck(Result):
    """The report of `Demonstrations.check`; print it.

    Attributes:
        table: One row per role (positive, negative, neutral): mean words, mean tokens if they were counted, the share that
            ends in punctuation, empty completions.
        findings: Each confound or defect in a sentence, with its remedy; empty if nothing was found.
        n: Number of demonstrations.
        length_separates: Share of pairs of a positive and a negative (ties count half) that length alone tells apart; 0.5
            means that it tells nothing.
        alike: What was compared without finding a difference. More may differ that nobody looked at.
    """

    table: pd.DataFrame
    findings: Sequence[str]
    n: int
    length_separates: float
    alike: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        object.__setattr__(self, "alike", tuple(self.alike))

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        answers: Mapping[str, Sequence[str]],
        model: ReadsTexts | Tokenizer | None = None,
    ) -> DemonstrationCheck:
        """Measures completions by role (`"positive"`, `"negative"`, ...), in words and in the tokens of `model`.

        Args:
            prompts: One per demonstration.
            answers: By role, one completion per demonstration.
            model: A model or a tokenizer; None counts words only.
        """
        words = {role: array("i", (len(text.split()) for text in texts)) for role, texts in answers.items()}
        lengths = words
        columns = {"mean words": {role: fmean(values) for role, values in words.items()}}
        too_long = ""
        if model is not None:
            lengths, too_long = _token_lengths(prompts, answers, model)
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
        ).rename_axis("role")
        longer = _longer_share(lengths["positive"], lengths["negative"])
        found = [*_length_findings(table, lengths), *_ending_findings(table["ends in . ! ?"])]
        for examine in (looks, letters, recurring):
            found += examine(answers)
        found += copied(prompts, answers)
        findings = [
            *(finding for _, finding in found),
            *_row_findings(zip(prompts, answers["positive"], answers["negative"], strict=True)),
            *(
                f"{count} {role} completions are empty, so their last token is the prompt's. Drop those rows."
                for role, count in table["empty"].items()
                if count
            ),
            *([too_long] if too_long else []),
        ]
        differ = {what for what, _ in found}
        alike = tuple(what for what in EXAMINED if what not in differ)
        return cls(table, tuple(findings), len(prompts), max(longer, 1 - longer), alike)

    def __repr__(self) -> str:
        lines = [f"{self.n} demonstrations", self.table.rename_axis(None).round(2).to_string()]
        lines += [f"! {finding}" for finding in self.findings]
        if self.alike:
            lines.append(f"No difference was found in: {', '.join(self.alike)}.")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(finding)}</li>" for finding in self.findings)
        return (
            f"<p>{self.n} demonstrations</p>{self.table.rename_axis(None).round(2).to_html(border=0)}<ul>{items}</ul>"
            f"<p>No difference was found in: {html.escape(', '.join(self.alike))}.</p>"
        )


def _token_lengths(
    prompts: Sequence[str], answers: Mapping[str, Sequence[str]], model: ReadsTexts | Tokenizer
) -> tuple[dict[str, array[int]], str]:
    """Tokens of every completion by role, and a finding if texts do not fit the model's context.

    A completion's tokens are those of prompt and completion, tokenized as one text, after the tokens of the prompt.
    """
    tokenizer = tokenizer_of(model)
    config = model.cfg if follows(model, ReadsTexts) else None
    begin = tokenizer.bos_token_id if config is not None and config.default_prepend_bos else None
    lengths, too_long = {role: array("i") for role in answers}, 0
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        before = tokenizer(list(prompts[rows]), add_special_tokens=False)["input_ids"]
        for role, completions in answers.items():
            texts = [join(prompt, own) for prompt, own in zip(prompts[rows], completions[rows], strict=True)]
            whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
            for asked, ids in zip(before, whole, strict=True):
                shared = 0
                while shared < min(len(asked), len(ids)) and asked[shared] == ids[shared]:
                    shared += 1
                lengths[role].append(len(ids) - shared)
                if config is not None:
                    too_long += len(ids) + (begin is not None and ids[:1] != [begin]) > config.n_ctx
    if config is None or not too_long:
        return lengths, ""
    return lengths, (
        f"{too_long} texts are longer than the model's context of {config.n_ctx} tokens and cannot be read whole. "
        "Shorten or drop them."
    )


def _longer_share(first: Sequence[int], second: Sequence[int]) -> float:
    return fmean((b > a) + 0.5 * (b == a) for a, b in zip(first, second, strict=True))


def _length_findings(table: pd.DataFrame, lengths: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str]]:
    """The findings of the pairs of roles; what neutrals differ in from both others is said once."""
    for first, second in sides_of(lengths):
        for column in [name for name in ("mean words", "mean tokens") if name in table]:
            means = float(table[column][first]), float(table[column][second])
            ratio = max(means) / max(*(min(means), 1.0))  # a mean below 1 comes of empty answers
            if ratio >= LENGTH_RATIO:
                break
        share = _longer_share(lengths[first], lengths[second])
        separates = max(share, 1 - share)
        if ratio < LENGTH_RATIO and separates < LENGTH_SEPARATES:
            continue
        is_second = share > 0.5 if means[0] == means[1] else means[1] > means[0]
        longer, shorter = (second, first) if is_second else (first, second)
        counts = "; ".join(
            f"{table[column][longer]:.1f} against {table[column][shorter]:.1f} {column.removeprefix('mean ')}"
            for column in ("mean words", "mean tokens")
            if column in table
        )
        yield (
            "length",
            f"{plural(longer).capitalize()} are {ratio:.1f} times as long as {plural(shorter)} ({counts} on average), and "
            f"length alone tells {separates:.0%} of pairs apart. The edit may learn length: {_remedy((first, second))}.",
        )
        if "neutral" in (first, second):
            return


def _remedy(roles: tuple[str, str]) -> str:
    if "neutral" not in roles:
        return "choose completions of similar length"
    return either(
        "give with_neutral_answers a max_new_tokens near the length of the others",
        f"give {setting('max_new_tokens')} near the length of the others",
    )


def _ending_findings(endings: pd.Series[float]) -> Iterator[tuple[str, str]]:
    for first, second in combinations(list(endings.index), 2):
        if abs(endings[first] - endings[second]) >= ENDING_GAP:
            yield (
                "final punctuation",
                f"{endings[first]:.0%} of {plural(first)} and {endings[second]:.0%} of {plural(second)} end in a period (or "
                "! or ?), so the last token separates punctuation. "
                + either('Use with_answer_ending(".")', "Give --answer-ending .")
                + f", or collect with {setting('token', 'last_content')}.",
            )
            return


def _row_findings(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    same, hashes = 0, array("q")  # 8 bytes per row instead of a set of all texts
    for row in rows:
        same += row[1].strip() == row[2].strip()
        digest = hashlib.blake2b(repr(row).encode(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little", signed=True))
    repeated = len(hashes) - len(np.unique(np.frombuffer(hashes, np.int64)))
    findings = []
    if same:
        findings.append(f"{same} rows have a positive equal to their negative and teach nothing. Drop them.")
    if repeated:
        findings.append(
            f"{repeated} rows repeat an earlier row, so they count twice. Drop them unless that is intended."
        )
    return findings
