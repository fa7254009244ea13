"""What lm-eval returned, unedited and edited, as one table of scores and one of samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from sea_lens.cache import JSON
from sea_lens.errors import InputError
from sea_lens.evaluation.metrics import Scale, mean, metric_table

BOOTSTRAP = "bootstrap over samples"
STDERR_ONLY = "none: lm-eval's standard errors only"


@dataclass(frozen=True)
class Score:
    """A number that lm-eval reports of a task or a group.

    Attributes:
        task: The task or group.
        metric: Such as `acc_norm`.
        filter: How answers were taken out of texts, such as `strict-match`; `none` where they were not.
        value: The number.
        stderr: lm-eval's standard error; NaN where it has none.
        higher_is_better: Whether it is, as the task says; None if it does not say.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float
    higher_is_better: bool | None = None

    @property
    def name(self) -> str:
        """What a row is called."""
        return f"{self.task} {self.metric}" + ("" if self.filter == "none" else f" ({self.filter})")


@dataclass(frozen=True)
class Sample:
    """One document of a task through one filter.

    Attributes:
        task: The task.
        doc_id: Its place.
        doc_hash: lm-eval's hash of its contents.
        filter: The filter.
        target: What is right.
        response: What the model said, or each choice's log-likelihood and whether it is the greedy one.
        metrics: By name; None where it is no number.
    """

    task: str
    doc_id: int
    doc_hash: str
    filter: str
    target: JSON
    response: JSON
    metrics: Mapping[str, float | None]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What it has in common with the same sample of another run."""
        return self.task, self.filter, self.doc_id, self.doc_hash


@dataclass(frozen=True)
class TaskResults:
    """What lm-eval returned for a task, or for a group with all of its tasks.

    Attributes:
        scores: All numbers, those of groups first.
        samples: All samples, in order.
        leaves: By task or group, the tasks whose samples its numbers come from.
        facts: By task, its version, few-shot number, sample counts and configuration.
    """

    scores: tuple[Score, ...]
    samples: tuple[Sample, ...]
    leaves: Mapping[str, Sequence[str]]
    facts: Mapping[str, JSON]


def read_results(plain: Mapping[str, Any]) -> TaskResults:
    """Reads the dictionary that `lm_eval.simple_evaluate` returns, as JSON values, samples reduced to what `Sample` has."""
    members: Mapping[str, list[str]] = plain["group_subtasks"]

    def leaves(name: str) -> list[str]:
        below = members.get(name) or []
        return [leaf for child in below for leaf in leaves(child)] if below else [name]

    scores = []
    for name, found in {**plain["groups"], **plain["results"]}.items():
        for key, value in found.items():
            metric, _, chosen = key.partition(",")
            if chosen and not metric.endswith("_stderr") and isinstance(value, int | float):
                stderr = found.get(f"{metric}_stderr,{chosen}")
                error = stderr if isinstance(stderr, float) else math.nan
                higher = plain["higher_is_better"].get(name, {}).get(metric)
                scores.append(Score(name, metric, chosen, float(value), error, higher))
    samples = [
        Sample(
            task, one["doc_id"], one["doc_hash"], one["filter"], one["target"], one["filtered_resps"], one["metrics"]
        )
        for task, found in plain["samples"].items()
        for one in found
    ]
    facts: dict[str, JSON] = {
        name: {
            "version": plain["versions"].get(name),
            "n_shot": plain["n-shot"].get(name),
            "samples": plain["n-samples"].get(name),
            "config": config,
        }
        for name, config in plain["configs"].items()
    }
    return TaskResults(tuple(scores), tuple(samples), {score.task: leaves(score.task) for score in scores}, facts)


def score_table(runs: Sequence[Mapping[str, TaskResults]], seed: int, confidence: float) -> pd.DataFrame:
    """Every score of one run, or of an unedited and an edited one, that is defined on these samples.

    Returns:
        One row a task and metric: `n` samples; of one run `value` and `stderr`, of two `unedited`, `edited`, `change`,
        `p_value`, `unedited_stderr` and `edited_stderr`; `low` to `high`, and where that comes from, `interval`. A metric
        that is not a mean over samples has none.

    Raises:
        InputError: If the runs did not see the same samples.
    """
    rows: dict[str, dict[str, object]] = {}
    for task in runs[0]:
        results = [run[task] for run in runs]
        keys = [[sample.key for sample in found.samples] for found in results]
        if any(other != keys[0] for other in keys):
            raise InputError(
                f"The unedited and the edited model did not see the same samples of {task}. Did its data change? Delete the "
                "folder of finished tasks, and run again."
            )
        for scores in zip(*(found.scores for found in results), strict=True):
            first = scores[0]
            if all(math.isnan(score.value) for score in scores):
                continue  # such as BBQ's score of a category that no sample is of
            values = [_sample_values(found, first) for found in results]
            if first.name not in rows:
                rows[first.name] = _row(scores, values, seed, confidence)
    if not rows:
        raise InputError(f"lm-eval reported no number for {', '.join(runs[0])}. Was it told only to predict?")
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["n"] = table["n"].astype(int)
    return table.rename_axis("metric")


def score_scales(run: Mapping[str, TaskResults]) -> dict[str, Scale]:
    """Which way each score is better; where every sample is right or wrong, it is a share."""
    scales: dict[str, Scale] = {}
    for results in run.values():
        for score in results.scores:
            found = {*_sample_values(results, score)}
            low, high = (0.0, 1.0) if found and found <= {0.0, 1.0} else (-math.inf, math.inf)
            best = math.nan if score.higher_is_better is None else high if score.higher_is_better else low
            scales.setdefault(score.name, Scale(best, low, high))
    return scales


def _sample_values(results: TaskResults, score: Score) -> list[float | None]:
    """What the samples that a score comes from count for in it."""
    leaves = results.leaves[score.task]
    return [
        sample.metrics.get(score.metric)
        for sample in results.samples
        if sample.task in leaves and sample.filter == score.filter and score.metric in sample.metrics
    ]


def _row(
    scores: Sequence[Score], values: Sequence[Sequence[float | None]], seed: int, confidence: float
) -> dict[str, object]:
    n = len(values[0])
    is_mean = n > 0
    for score, found in zip(scores, values, strict=True):
        numbers = [value for value in found if value is not None]
        is_mean &= len(numbers) == n and math.isclose(sum(numbers) / n, score.value, rel_tol=1e-9, abs_tol=1e-12)
    row: dict[str, object] = {"n": n}
    names = ("value",) if len(scores) == 1 else ("unedited", "edited")
    row |= {name: score.value for name, score in zip(names, scores, strict=True)}
    if len(scores) == 2:
        row |= {"change": scores[1].value - scores[0].value}
    row |= {"low": math.nan, "high": math.nan}
    if len(scores) == 2:
        row |= {"p_value": math.nan}
    if is_mean:
        columns = [{"rows": torch.ones(n), "score": torch.tensor(list(map(float, found)))} for found in values]  # type: ignore[arg-type]
        resampled = metric_table([mean("score")], *columns, seed=seed, confidence=confidence)
        row |= {name: float(resampled[name].iloc[0]) for name in ("low", "high", "p_value") if name in row}
    stderr_names = ("stderr",) if len(scores) == 1 else ("unedited_stderr", "edited_stderr")
    row |= {name: score.stderr for name, score in zip(stderr_names, scores, strict=True)}
    return {**row, "interval": BOOTSTRAP if is_mean else STDERR_ONLY}


def sample_table(runs: Sequence[Mapping[str, TaskResults]]) -> pd.DataFrame:
    """One row a sample and filter: task, document, target, what each model said, and the metrics that are numbers."""
    suffixes = ("",) if len(runs) == 1 else (" unedited", " edited")
    rows = []
    for task in runs[0]:
        for samples in zip(*(run[task].samples for run in runs), strict=True):
            first = samples[0]
            row: dict[str, object] = {
                "task": first.task,
                "filter": first.filter,
                "doc_id": first.doc_id,
                "doc_hash": first.doc_hash,
                "target": _text(first.target),
            }
            row |= {f"response{suffix}": _text(one.response) for suffix, one in zip(suffixes, samples, strict=True)}
            for name in first.metrics:
                row |= {f"{name}{suffix}": one.metrics[name] for suffix, one in zip(suffixes, samples, strict=True)}
            rows.append(row)
    return pd.DataFrame(rows).dropna(axis="columns", how="all").rename_axis("sample")


def _text(value: JSON) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]  # a generated text
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
