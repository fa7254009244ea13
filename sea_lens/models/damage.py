"""What an edit costs the model on text that it should leave alone: perplexity, KL, and answers that repeat themselves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from sea_lens.arguments import check_arguments
from sea_lens.cells import number_text
from sea_lens.errors import BrokenModelWarning, HookNeverFiredError, InputError, SeaLensWarning
from sea_lens.models.bridge import EditsModels, Model, check_is_model
from sea_lens.models.damage_limits import DamageLimits
from sea_lens.models.divergence import Divergence, UneditedPredictions
from sea_lens.models.generate import greedy_answers
from sea_lens.models.neutral import neutral_texts
from sea_lens.models.repetition import examples_of
from sea_lens.models.tokens import all_token_ids, token_ids
from sea_lens.results import Result, readable, screen
from sea_lens.wording import either

PROMPTS, NEUTRAL = "prompts", "neutral text"
SHOWN = 3
"""Continuations that a repr shows."""
TOKENS_PER_TEXT = 128
"""Of a text, this many tokens at most are read."""
MOST_PROMPTS = 32
"""Prompts that are measured on, evenly spread over those given."""


@dataclass(frozen=True, eq=False, repr=False)
class Damage(Result):
    """What an edit costs on text that it should leave alone.

    Attributes:
        table: One row per kind of text, `prompts` and `neutral text`: the number of `texts` and of predicted `tokens`, the
            perplexities `unedited` and `edited`, and `kl`, the mean over tokens of KL(unedited || edited) of the next-token
            distributions, in nats.
        examples: Greedy continuations: `prompt`, `unedited`, `edited`, and the `repetition` of both; empty if not asked for.
        limits: Past these the model counts as broken.

    Example:
        >>> sl.measure_damage(model, [], editor.scaled(0.5)).table.index.tolist()
        ['neutral text']
    """

    table: pd.DataFrame
    examples: pd.DataFrame = field(default_factory=pd.DataFrame)
    limits: DamageLimits = field(default_factory=DamageLimits)

    @property
    def kl(self) -> float:
        """KL per token, in nats, on the kind of text where it is highest."""
        return float(self.table["kl"].max())

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity edited over unedited, on the kind of text where it is highest."""
        return float((self.table["edited"] / self.table["unedited"]).max())

    @property
    def repetition(self) -> float:
        """Mean share of repeated pairs of tokens in the edited examples, less that of the unedited ones; 0 without any."""
        if self.examples.empty:
            return 0.0
        return float((self.examples["repetition edited"] - self.examples["repetition unedited"]).mean())

    @property
    def is_broken(self) -> bool:
        """Whether a limit is passed."""
        return bool(self._past)

    @property
    def _past(self) -> list[str]:
        found = []
        if not self.perplexity_ratio <= self.limits.perplexity_ratio:
            found.append(self._perplexities((self.table["edited"] / self.table["unedited"]).to_numpy().argmax()))
        if not self.kl <= self.limits.kl:
            found.append(f"KL {number_text(self.kl)} nats per token (limit {self.limits.kl:.3g})")
        if not self.repetition <= self.limits.repetition:
            found.append(f"{self.repetition:.0%} more of its answers' token pairs are repeated")
        return found

    def _perplexities(self, row: Any) -> str:
        before, after = (_short(float(self.table[side].iloc[row])) for side in ("unedited", "edited"))
        return f"perplexity {before} -> {after} on {self.table.index[row]}"

    @property
    def finding(self) -> str:
        """One sentence where the edit breaks the model; empty where it does not."""
        return f"This edit breaks the model: {', '.join(self._past)}." if self._past else ""

    @property
    def summary(self) -> str:
        """One line for a screen, broken or not."""
        if self.is_broken:
            return f"{self.finding} Its scores say little."
        pair = self._perplexities(self.table["kl"].to_numpy().argmax())
        told = f"KL {number_text(self.kl)} nats per token (limit {self.limits.kl:.3g}), {pair}"
        unread = "; the tokenizer does not know the neutral sample, so give neutral_texts"
        return f"{told}{'' if NEUTRAL in self.table.index else unread}."

    def _head(self) -> str:
        return f"Damage: {self.summary}"

    def _below(self) -> str:
        return screen(readable(self.examples.iloc[:SHOWN])) if len(self.examples) else ""

    def warn(self, stacklevel: int = 2) -> None:
        """Warns where the edit breaks the model.

        Args:
            stacklevel: As of `warnings.warn`, counted from the caller.

        Warns:
            BrokenModelWarning: If `is_broken`.
        """
        if self.is_broken:
            told = "Its scores say little. Scale it down, edit fewer layers, or pass another editor."
            warnings.warn(f"{self.finding} {told}", BrokenModelWarning, stacklevel=stacklevel + 1)


@dataclass(frozen=True, eq=False)
class DamageMeter:
    """Measures many editors' damage on the same texts; the unedited model is run once.

    Attributes:
        model: The model, unedited.
        asked: The prompts whose continuations can be shown.
        predictions: By kind of text, what the unedited model predicts.
        limits: Past these the model counts as broken.

    Example:
        >>> [sl.DamageMeter.of(model).measure(editor.scaled(strength)).is_broken for strength in (0.5, 1.0, 4.0)]
        [False, False, True]
    """

    model: Model
    asked: tuple[str, ...]
    predictions: dict[str, UneditedPredictions]
    limits: DamageLimits
    batch_size: int
    _answers: dict[tuple[int, int], list[str]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: Sequence[str] = (),
        texts: Sequence[str] | None = None,
        *,
        limits: DamageLimits | None = None,
        asked: Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> DamageMeter:
        """For a model and its texts.

        Args:
            model: A TransformerBridge with a tokenizer, unedited.
            prompts: Prompts of the questions at hand; 32 of them at most are used, evenly spread.
            texts: Texts that the edit should leave alone; None for `neutral_texts(model)`. Of each, 128 tokens are read.
            limits: Past these the model counts as broken; None for the default.
            asked: The prompts as they are asked, such as after worked examples, to be continued; None for `prompts`.
            batch_size: Texts in one forward pass. It changes nothing but rounding.

        Raises:
            InputError: If there is no text at all to measure on.
        """
        check_arguments(DamageMeter.of, locals())
        for name, given in {"prompts": prompts, "texts": texts}.items():
            if isinstance(given, str):
                raise InputError(f"{name} is a list of texts, and {given!r:.60} was given. Put it into a list.")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
        spread = _spread(prompts)
        kinds = {PROMPTS: spread, NEUTRAL: tuple(neutral_texts(model) if texts is None else texts)}
        predictions = {}
        for kind, of_kind in kinds.items():
            longest = min(TOKENS_PER_TEXT, model.cfg.n_ctx)
            rows = [ids[:longest] for ids in (all_token_ids(model, of_kind) if of_kind else [])]
            rows = [list(row) for row in dict.fromkeys(tuple(row) for row in rows if len(row) > 1)]
            if rows:
                predictions[kind] = UneditedPredictions.of_rows(model, rows, batch_size=batch_size)
        if not predictions:
            raise InputError(
                "There is no text to measure damage on: no prompt has two tokens, and the model's tokenizer does not know "
                "the shipped English sample. "
                + either("Give texts=[...] in the model's language.", "Give prompts in the model's language.")
            )
        shown = tuple(prompt for prompt in (spread if asked is None else _spread(asked)) if token_ids(model, prompt))
        return cls(model, shown, predictions, DamageLimits() if limits is None else limits, batch_size)

    def measure(self, editor: EditsModels, *, examples: int = 0, max_new_tokens: int = 24) -> Damage:
        """An editor's damage.

        Args:
            editor: The editor.
            examples: How many prompts to let both models continue.
            max_new_tokens: Length of a continuation.
        """
        check_arguments(DamageMeter.measure, locals())
        with warnings.catch_warnings():
            # Texts that it does not edit are texts that it leaves alone.
            warnings.simplefilter("ignore", SeaLensWarning)
            found = {
                kind: plain.where_it_acts(editor, plain.divergence_to(editor))
                for kind, plain in self.predictions.items()
            }
            shown = self.examples(editor, examples, max_new_tokens)
        rows = [self._row(kind, divergence) for kind, divergence in found.items()]
        return Damage(pd.DataFrame(rows).set_index("text"), shown, self.limits)

    def measure_all(self, editors: Sequence[EditsModels]) -> list[Damage]:
        """The damage of many editors, without examples: what `measure` gives for each, to the bit, and sooner.

        Editors that are alike up to a layer share the blocks below it, and the unedited model is run once per batch.

        Args:
            editors: The editors.
        """
        check_arguments(DamageMeter.measure_all, locals())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeaLensWarning)
            found = {kind: plain.divergences_to(editors) for kind, plain in self.predictions.items()}
            for kind, plain in self.predictions.items():
                found[kind] = [plain.where_it_acts(*each) for each in zip(editors, found[kind], strict=True)]
        tables = [[self._row(kind, each[number]) for kind, each in found.items()] for number in range(len(editors))]
        return [Damage(pd.DataFrame(rows).set_index("text"), limits=self.limits) for rows in tables]

    def on_fewer(self, every: int) -> DamageMeter:
        """A meter of every n-th text of each kind, for a first look.

        Args:
            every: 4 for a quarter.
        """
        check_arguments(DamageMeter.on_fewer, locals())
        fewer = {
            kind: UneditedPredictions.of_rows(self.model, plain.rows[::every], batch_size=self.batch_size)
            for kind, plain in self.predictions.items()
        }
        return replace(self, predictions=fewer)

    def _row(self, kind: str, found: Divergence) -> dict[str, object]:
        return {
            "text": kind,
            "texts": len(self.predictions[kind].rows),
            "tokens": found.tokens,
            "unedited": perplexity(found.nll_unedited),
            "edited": perplexity(found.nll_edited),
            "kl": found.kl,
        }

    def examples(self, editor: EditsModels, n: int = 3, max_new_tokens: int = 24) -> pd.DataFrame:
        """Greedy continuations of the first prompts by both models, as `Damage.examples`.

        Args:
            editor: The editor.
            n: How many prompts to let both models continue.
            max_new_tokens: Length of a continuation.
        """
        check_arguments(DamageMeter.examples, locals())
        prompts = self.asked[: max(0, n)]
        if not prompts:
            return pd.DataFrame()
        edited = unedited = self.unedited_answers(n, max_new_tokens)
        with suppress(HookNeverFiredError):  # none of these is edited
            edited = self._said(prompts, max_new_tokens, editor)
        return examples_of(self.model, prompts, unedited, edited)

    def unedited_answers(self, n: int = 3, max_new_tokens: int = 24) -> list[str]:
        """Greedy continuations of the first prompts by the unedited model, which are made once.

        Args:
            n: How many prompts it continues.
            max_new_tokens: Length of a continuation.
        """
        prompts = self.asked[: max(0, n)]
        key = (len(prompts), max_new_tokens)
        if key not in self._answers:
            self._answers[key] = self._said(prompts, max_new_tokens, None)
        return self._answers[key]

    def _said(self, prompts: Sequence[str], max_new_tokens: int, editor: EditsModels | None) -> list[str]:
        return greedy_answers(
            self.model, prompts, max_new_tokens, editor=editor, stop=(), batch_size=self.batch_size, progress=False
        )


def _spread(prompts: Sequence[str]) -> tuple[str, ...]:
    """Some of the prompts, evenly spread, each once."""
    return tuple(dict.fromkeys(prompts[:: -(-len(prompts) // MOST_PROMPTS)] if prompts else ()))


def perplexity(nll: float) -> float:
    """The exponential of a negative log-likelihood per token; infinite where it overflows."""
    return math.exp(nll) if nll < 700 else math.inf


def _short(number: float) -> str:
    return f"{number:,.0f}" if 100 <= number < 1e9 else f"{number:.3g}"


def measure_damage(
    model: Model,
    prompts: Sequence[str],
    editor: EditsModels,
    *,
    texts: Sequence[str] | None = None,
    limits: DamageLimits | None = None,
    examples: int = 3,
    max_new_tokens: int = 24,
    batch_size: int = 16,
) -> Damage:
    """Measures what an edit costs on text that it should leave alone.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        prompts: Prompts of the questions at hand, which may be none.
        editor: The editor.
        texts: Texts to leave alone, such as French ones for an edit to French answers; None for `neutral_texts(model)`.
        limits: Past these the model counts as broken; None for the default.
        examples: How many prompts to let both models continue.
        max_new_tokens: Length of a continuation.
        batch_size: Texts in one forward pass. It changes nothing but rounding.

    Returns:
        A result whose `table` has one row per kind of text, with perplexities, and the KL in nats per token.

    Raises:
        InputError: If there is no text at all to measure on.
        ModelMismatchError: If the editor does not fit the model.

    Warns:
        BrokenModelWarning: If the edit breaks the model.

    Example:
        >>> sl.measure_damage(model, [question.prompt for question in questions], editor).is_broken
        False
    """
    check_arguments(measure_damage, locals())
    check_is_model(model)
    meter = DamageMeter.of(model, prompts, texts, limits=limits, batch_size=batch_size)
    found = meter.measure(editor, examples=examples, max_new_tokens=max_new_tokens)
    found.warn()
    return found
