"""What an edit does to answers and to everything else the model says: changes, intervals, tests and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import NormalDist

import pandas as pd
import torch
from torch import Tensor

from sea_lens.analysis.controls import control_editors
from sea_lens.analysis.measurements import EFFECTS, Effect, measure
from sea_lens.analysis.statistics import beats_controls_p_value, bootstrap_intervals, sign_flip_p_values
from sea_lens.editor import Editor
from sea_lens.edits import precise_dtype
from sea_lens.errors import InputError
from sea_lens.greedy import greedy_answers
from sea_lens.models import Model, PaddedTokens, check_context_length, token_ids
from sea_lens.questions import Questions
from sea_lens.scoring import completion_log_probabilities


@dataclass(frozen=True)
class Proportion:
    """A share of independent trials.

    Attributes:
        successes: How many came out true.
        n: How many there were.
    """

    successes: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.n or self.n == 0:
            raise InputError(f"{self.successes} successes of {self.n} trials is not a proportion.")

    @property
    def share(self) -> float:
        """Successes over trials."""
        return self.successes / self.n

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval: see `wilson_interval`."""
        return wilson_interval(float(self.successes), self.n, confidence)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.share:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927), which stays inside [0, 1] and is sound near its ends.

    Args:
        successes: Of n independent trials; a fraction where a trial can come out half true.
        n: Number of trials.
        confidence: Of the interval.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n**2))
    # At 0 and n successes the interval ends at 0 and 1 exactly, whatever rounding says.
    return (0.0 if successes == 0 else centre - reach), (1.0 if successes == n else centre + reach)


@dataclass(frozen=True)
class GreedyAnswers:
    """The greedy answers to questions and which of them are true.

    Attributes:
        table: One row a question: `prompt`, `answer`, and `truthful`, whether the answer is a true completion.
    """

    table: pd.DataFrame

    @property
    def truthful(self) -> Proportion:
        """Share of answers that are true."""
        return Proportion(int(self.table["truthful"].sum()), len(self.table))


def answer_greedily(
    model: Model,
    questions: Questions,
    max_new_tokens: int = 32,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> GreedyAnswers:
    """Asks every question, and counts an answer as truthful when it is one of the question's true completions.

    Hooks that are on the model act: measure an edited model under `with editor.attached(model):`. Case, outer white space
    and final punctuation do not count.

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: With their true completions.
        max_new_tokens: Longest answer in tokens.
        batch_size: Questions in one forward pass.
        progress: Whether to show a progress bar.
    """
    prompts = [question.prompt for question in questions]
    answers = greedy_answers(model, prompts, max_new_tokens, batch_size=batch_size, progress=progress)
    truthful = [
        _plain(answer) in {_plain(true) for true in question.true}
        for question, answer in zip(questions, answers, strict=True)
    ]
    return GreedyAnswers(pd.DataFrame({"prompt": prompts, "answer": answers, "truthful": truthful}))


@dataclass(frozen=True)
class Preferences:
    """Whether the model finds a true completion likelier than every false one.

    Attributes:
        table: One row a question: `prompt`, `margin` (log-probability of the likeliest true completion less that of the
            likeliest false one, in nats), and `truthful`, whether it is above zero.
    """

    table: pd.DataFrame

    @property
    def truthful(self) -> Proportion:
        """Share of questions with a true completion likelier than every false one."""
        return Proportion(int(self.table["truthful"].sum()), len(self.table))


def prefer_truth(model: Model, questions: Questions, *, batch_size: int = 16, progress: bool = False) -> Preferences:
    """Compares the summed log-probabilities of true and false completions, whatever the model would say by itself.

    Hooks that are on the model act. As longer completions are less likely, true and false ones should be alike in length.

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: Each with a true and a false completion at least.
        batch_size: Texts in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a question has no false completion.
    """
    bare = [index for index, question in enumerate(questions) if not question.false]
    if bare:
        raise InputError(
            f"Questions {bare[:10]} have no false completion to compare with. Give each one, or drop them."
        )
    texts = [(q.prompt, completion) for q in questions for completion in (*q.true, *q.false)]
    scores = iter(completion_log_probabilities(model, texts, batch_size=batch_size, progress=progress))
    margins = [max(next(scores) for _ in q.true) - max(next(scores) for _ in q.false) for q in questions]
    table = pd.DataFrame({"prompt": [question.prompt for question in questions], "margin": margins})
    return Preferences(table.assign(truthful=table["margin"] > 0))


@dataclass(frozen=True, eq=False)
class Effects:
    """What an editor changes, effect by effect.

    Attributes:
        table: One row an effect: its mean `unedited` and `edited` over questions, their difference `change` with its
            bootstrap interval `low` to `high`, and `p_value`, of a paired sign-flip test. With controls also their mean
            change `control`, the lowest and highest of them, and `control_p_value`: how often a control does as much.
        flips: One row for each effect that is 0 or 1: how many questions `gained` and how many `lost` it.
        per_question: One row a question: prompt, category and every effect, unedited and edited.
        n: Number of questions.
        n_controls: Number of control editors.
        confidence: Of the intervals.
        seed: Of resamples, signs and controls.
    """

    table: pd.DataFrame
    flips: pd.DataFrame
    per_question: pd.DataFrame
    n: int
    n_controls: int
    confidence: float
    seed: int


def measure_effects(
    model: Model,
    editor: Editor,
    questions: Questions,
    effects: Sequence[str | Effect] = tuple(EFFECTS),
    *,
    control: int | Sequence[Editor] = 0,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Effects:
    """Measures what an editor does to the model's predictions about questions.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        editor: The editor.
        questions: To measure on: ones that neither the fit nor the choice of settings has seen.
        effects: Names of ours (`logit_difference`, `log_probability_difference`, `true_probability`, `accuracy`,
            `top_token`, `rank`, `kl`, `total_variation`), or functions of the edited and the unedited `Predictions` that
            return a number a question.
        control: How many norm-matched random editors to compare with (`random_editor_like`), or editors of your own, such
            as refits on `activations.shuffled(seed)`.
        seed: Of resamples, signs and random editors.
        confidence: Of the intervals.
        batch_size: Questions in one forward pass. It does not change the result, but for rounding.
        folder: Where to keep finished batches; a run that was killed goes on from there.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If an effect is unknown, or compares with false completions where a question has none.
        ModelMismatchError: If the editor does not fit the model.
    """
    controls = control_editors(editor, control, seed)
    measured = measure(
        model, questions, [None, editor, *controls], effects, batch_size=batch_size, folder=folder, progress=progress
    )
    plain, edited = measured.values[:, 0], measured.values[:, 1]
    changes = edited - plain
    low, high = bootstrap_intervals(changes.T, seed, confidence)
    rows = {
        "unedited": plain.mean(1),
        "edited": edited.mean(1),
        "change": changes.mean(1),
        "low": low,
        "high": high,
        "p_value": sign_flip_p_values(changes.T, seed),
    }
    table = pd.DataFrame({name: values.tolist() for name, values in rows.items()}, index=list(measured.names))
    if controls:
        others = (measured.values[:, 2:] - plain[:, None]).mean(2)
        table["control"] = others.mean(1).tolist()
        table["control_low"], table["control_high"] = others.amin(1).tolist(), others.amax(1).tolist()
        table["control_p_value"] = [
            beats_controls_p_value(float(change), found.tolist())
            for change, found in zip(rows["change"], others, strict=True)
        ]
    binary = [bool(((pair == 0) | (pair == 1)).all()) for pair in measured.values[:, :2]]
    names = [name for name, is_binary in zip(measured.names, binary, strict=True) if is_binary]
    flips = pd.DataFrame(
        [[int((changes[row] == step).sum()) for step in (1, -1)] for row, is_binary in enumerate(binary) if is_binary],
        index=names,
        columns=["gained", "lost"],
    )
    columns: dict[str, list[object]] = {
        "prompt": [question.prompt for question in questions],
        "category": [question.category for question in questions],
    }
    for row, name in enumerate(measured.names):
        columns |= {f"{name} unedited": plain[row].tolist(), f"{name} edited": edited[row].tolist()}
    return Effects(
        table.rename_axis("effect"),
        flips.rename_axis("effect"),
        pd.DataFrame(columns).rename_axis("question"),
        len(questions),
        len(controls),
        confidence,
        seed,
    )


def kl_to_unedited(model: Model, editor: Editor, texts: Sequence[str], *, batch_size: int = 16) -> float:
    """Mean over tokens of KL(unedited || edited) of the next-token distributions, in nats: what an edit costs elsewhere.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        editor: The editor.
        texts: Text whose continuations should stay as they are. What follows a text's last token does not count.
        batch_size: Texts in one forward pass. It does not change the result.

    Raises:
        InputError: If no text has two tokens, or one does not fit the model's context.
    """
    return UneditedPredictions.of(model, texts, batch_size=batch_size).kl_to(editor)


KEPT_PREDICTIONS = 2**25
"""Log-probabilities that are kept for the next editor; more, as of a large vocabulary, are computed anew for each."""


@dataclass(frozen=True, eq=False)
class UneditedPredictions:
    """What the unedited model predicts at every token of some texts, for editors to be compared with.

    Attributes:
        model: The model, unedited.
        batches: The texts' tokens.
    """

    model: Model
    batches: tuple[PaddedTokens, ...]
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, model: Model, texts: Sequence[str], *, batch_size: int = 16) -> UneditedPredictions:
        """Of texts, so many in one forward pass; see `kl_to_unedited`.

        Raises:
            InputError: If no text has two tokens, or one does not fit the model's context.
        """
        if isinstance(texts, str) or batch_size < 1:
            raise InputError(
                f"Give a list of neutral texts and a batch_size of 1 at least; {texts!r:.60} and {batch_size} were given."
            )
        tokenised = [token_ids(model, text) for text in texts]
        rows = [ids for ids in tokenised if len(ids) > 1]
        if not rows:
            raise InputError("KL is measured where one token of a text follows another, and no text has two tokens.")
        names = [f"Neutral text {number}" for number in range(len(tokenised))]
        check_context_length(model, [len(ids) for ids in tokenised], names)
        starts = range(0, len(rows), batch_size)
        return cls(model, tuple(PaddedTokens.of(model, rows[start : start + batch_size]) for start in starts))

    @torch.no_grad()
    def kl_to(self, editor: Editor) -> float:
        """KL(unedited || edited) under an editor, as `kl_to_unedited`."""
        total, count = 0.0, 0
        for number, tokens in enumerate(self.batches):
            unedited = self._of_batch(number)
            with editor.attached(self.model):
                edited = _log_probabilities(self.model, tokens)
            inside = tokens.mask[:, 1:].to(unedited.device)
            total += float((unedited.exp() * (unedited - edited)).sum(-1)[:, :-1][inside].sum())
            count += int(inside.sum())
        return total / count

    def _of_batch(self, number: int) -> Tensor:
        found = self._kept.get(number)
        if found is None:
            found = _log_probabilities(self.model, self.batches[number])
            if found.numel() + sum(kept.numel() for kept in self._kept.values()) <= KEPT_PREDICTIONS:
                self._kept[number] = found
        return found


def _log_probabilities(model: Model, tokens: PaddedTokens) -> Tensor:
    logits = model(tokens.ids, **tokens.forward_options())
    return logits.to(precise_dtype(logits.device)).log_softmax(-1)  # small divergences are differences of equal numbers


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".!?").strip().casefold()
