"""What lm-eval returned for the unedited and the edited model, as one table of scores and one of samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sea_lens.errors import InputError
from sea_lens.evaluation.metrics import Columns, Metric, Scale, Sums, mean, metric_table
from sea_lens.statistics import ENOUGH

BOOTSTRAP = "bootstrap over samples"
OF_FEW = "Wilson, Bonett-Price or Student, over few samples"
STDERR_ONLY = "none: lm-eval's standard errors only"
TaskResults = Mapping[str, Any]
"""What `lm_eval.simple_evaluate` returned for one task or group, as plain JSON."""
Runs = Sequence[Mapping[str, TaskResults]]
"""Results by task, of one model or of the unedited and the edited one."""
MEAN = mean("sum", "weight")
BY_FORM: Sequence[Callable[[Sums], Tensor]] = (
    MEAN.value,
    lambda sums: (-sums["sum"] / sums["weight"]).exp(),  # perplexity, per sample, word or byte
    lambda sums: -sums["sum"] / sums["weight"] / math.log(2),  # bits per byte
)
"""How lm-eval makes a number of the sums of what samples count for: the sum of values, and of their weights."""


@dataclass(frozen=True)
class Score:
    """A number that lm-eval reports for a task or a group.

    Attributes:
        name: Task, metric and, where there is one, filter.
        value: The number.
        stderr: lm-eval's standard error; NaN where it has none.
        higher_is_better: As the task says; None if it does not say.
        values: What each sample counts for in the metric: a number, or a sum with its weight (log-probability, and words or
            bytes); None where it is neither.
    """

    name: str
    value: float
    stderr: float
    higher_is_better: bool | None
    values: Sequence[float | Sequence[float] | None]

    @property
    def columns(self) -> Columns | None:
        """Of each sample, the sum and its weight, 1 for a number; None where a sample has neither."""
        pairs = [value if isinstance(value, Sequence) else (value, 1.0) for value in self.values]
        if not pairs or any(part is None for pair in pairs for part in pair):
            return None
        sums, weights = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        return {"rows": torch.ones(len(pairs)), "sum": sums, "weight": weights}

    @property
    def form(self) -> int | None:
        """The place in `BY_FORM` of what gives the number; None for corpus metrics such as BLEU, and for medians."""
        columns = self.columns
        if columns is None:
            return None
        for place, form in enumerate(BY_FORM):
            if place == 0 and not bool((columns["weight"] == 1).all()):
                continue  # a true and a predicted label, of which equal sums mean nothing
            found = Metric(self.name, form, "rows").of(columns)
            if math.isclose(found, self.value, rel_tol=1e-9, abs_tol=1e-12):
                return place
        return None


def scores_of(found: TaskResults) -> Iterator[Score]:
    """All numbers of a task or group, those of groups first."""

    def leaves(name: str) -> list[str]:
        below = found["group_subtasks"].get(name) or []
        return [leaf for child in below for leaf in leaves(child)] if below else [name]

    for task, numbers in {**found["groups"], **found["results"]}.items():
        for key, value in numbers.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = numbers.get(f"{metric}_stderr,{chosen}")
            yield Score(
                f"{task} {metric}" + ("" if chosen == "none" else f" ({chosen})"),
                float(value),
                stderr if isinstance(stderr, float) else math.nan,
                found["higher_is_better"].get(task, {}).get(metric),
                [
                    sample["metrics"][metric]
                    for leaf in leaves(task)
                    for sample in found["samples"].get(leaf, [])
                    if sample["filter"] == chosen and metric in sample["metrics"]
                ],
            )


def samples_of(found: TaskResults) -> Iterator[tuple[tuple[object, ...], dict[str, Any]]]:
    """All samples of a task or group in order, each with what it shares with the same sample of another run."""
    for task, samples in found["samples"].items():
        for sample in samples:
            yield (task, sample["filter"], sample["doc_id"], sample["doc_hash"]), sample


def facts_of(found: TaskResults) -> dict[str, Any]:
    """By task: version, number of worked examples, sample counts and configuration."""
    return {
        name: {
            "version": found["versions"].get(name),
            "n_shot": found["n-shot"].get(name),
            "samples": found["n-samples"].get(name),
            "config": config,
        }
        for name, config in found["configs"].items()
    }


def score_table(runs: Runs, seed: int, confidence: float) -> tuple[pd.DataFrame, dict[str, Scale]]:
    """Every score that is defined on these samples.

    Returns:
        One row per task and metric, with `n` samples; of one run `value` and `stderr`, of two `unedited`, `edited`, `change`,
        `p_value`, `unedited_stderr` and `edited_stderr`; the interval `low` to `high`, and which kind it is in `interval`. A
        metric that is neither a mean over samples nor their perplexity has none. And the scales of the scores, by name.

    Raises:
        InputError: If the runs did not see the same samples.
    """
    rows: dict[str, dict[str, object]] = {}
    scales: dict[str, Scale] = {}
    for task in runs[0]:
        keys = [[key for key, _ in samples_of(run[task])] for run in runs]
        if any(other != keys[0] for other in keys):
            raise InputError(
                f"The unedited and the edited model did not see the same samples of {task}. Did its data change? Delete the "
                "folder of finished tasks, and run again."
            )
        for scores in zip(*(scores_of(run[task]) for run in runs), strict=True):
            name = scores[0].name
            # lm-eval reports NaN for, say, BBQ's score of a category without samples.
            if name not in rows and not all(math.isnan(score.value) for score in scores):
                rows[name] = _row(scores, seed, confidence)
                scales[name] = _scale(scores[0])
    if not rows:
        raise InputError(f"lm-eval reported no number for {', '.join(runs[0])}. Was it told only to predict?")
    table = pd.DataFrame.from_dict(rows, orient="index").astype({"n": int}).rename_axis("metric")
    return (table.fillna({"note": ""}) if "note" in table else table), scales


def _scale(score: Score) -> Scale:
    """Which way a score is better; where every sample is right or wrong, it is a share."""
    values = {value for value in score.values if not isinstance(value, Sequence)}
    low, high = (0.0, 1.0) if values and values <= {0.0, 1.0} else (-math.inf, math.inf)
    return Scale(math.nan if score.higher_is_better is None else high if score.higher_is_better else low, low, high)


def _row(scores: Sequence[Score], seed: int, confidence: float) -> dict[str, object]:
    names, suffixes = (["value"], [""]) if len(scores) == 1 else (["unedited", "edited"], ["unedited_", "edited_"])
    row: dict[str, object] = {name: score.value for name, score in zip(names, scores, strict=True)}
    if len(scores) == 2:
        row["change"] = scores[1].value - scores[0].value
    ends = ["low", "high", "p_value"][: 1 + len(scores)]
    forms = {score.form for score in scores}
    form = forms.pop() if len(forms) == 1 else None
    columns = [found for found in (score.columns for score in scores) if found is not None]
    if form is not None:
        metric = MEAN if form == 0 else Metric(scores[0].name, BY_FORM[form], "rows")
        resampled = metric_table([metric], *columns, seed=seed, confidence=confidence)
        row |= {name: float(resampled[name].iloc[0]) for name in ends}
        row |= {"note": resampled["note"].iloc[0]} if "note" in resampled else {}
    else:
        row |= dict.fromkeys(ends, math.nan)
    row |= {f"{suffix}stderr": score.stderr for suffix, score in zip(suffixes, scores, strict=True)}
    n = len(scores[0].values)
    kind = STDERR_ONLY if form is None else OF_FEW if form == 0 and n < ENOUGH else BOOTSTRAP
    return {"n": n, **row, "interval": kind}


def sample_table(runs: Runs) -> pd.DataFrame:
    """One row per sample and filter: task, document, target, what each model said, and the metrics that are numbers."""
    suffixes = ("",) if len(runs) == 1 else (" unedited", " edited")
    rows = []
    for task in runs[0]:
        for found in zip(*(samples_of(run[task]) for run in runs), strict=True):
            (leaf, chosen, doc_id, doc_hash), first = found[0]
            row: dict[str, object] = {
                "task": leaf,
                "filter": chosen,
                "doc_id": doc_id,
                "doc_hash": doc_hash,
                "target": _text(first["target"]),
            }
            sides = [(suffix, one) for suffix, (_, one) in zip(suffixes, found, strict=True)]
            row |= {f"response{suffix}": _text(one["filtered_resps"]) for suffix, one in sides}
            for name in first["metrics"]:
                if not isinstance(first["metrics"][name], list):
                    row |= {f"{name}{suffix}": one["metrics"][name] for suffix, one in sides}
            rows.append(row)
    return pd.DataFrame(rows).dropna(axis="columns", how="all").rename_axis("sample")


def _text(value: object) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]  # a generated text
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
