"""What benchmarks of questions with known answers have in common: score all answers before and after an edit, compare."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sea_lens.cache import JSON, write_text
from sea_lens.data.questions import Questions
from sea_lens.editing.card import library_versions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.metrics import Columns, Metric, Scale, metric_table, metrics_by_category
from sea_lens.models.bridge import Model, ModelDescription, weights_digest
from sea_lens.models.log_probs import AnswerScores, score_answers
from sea_lens.tables import to_latex, to_markdown


def evaluate_answers(
    benchmark: str,
    model: Model,
    questions: Questions,
    editor: Editor | None,
    columns: Callable[[AnswerScores], Mapping[str, Tensor]],
    metrics: Sequence[Metric],
    *,
    prompt: str,
    options: Mapping[str, JSON],
    seed: int,
    confidence: float,
    batch_size: int,
    folder: str | Path | None,
    progress: bool,
) -> Evaluation:
    """Scores all answers and compares what follows from the scores.

    Args:
        benchmark: Its name.
        model: A TransformerBridge with a tokenizer, unedited.
        questions: As the model is to read them.
        editor: To edit the model with; None for none.
        columns: What each question counts for in the metrics, out of the scores, `rows` left out (it is 1 for all).
        metrics: The first is the headline.
        prompt: What the questions were put into, in words.
        options: What else the numbers depend on.
        seed: Of the resamples.
        confidence: Of the intervals.
        batch_size: Rows in one forward pass.
        folder: Where to keep finished batches.
        progress: Whether to show a progress bar.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes the score of no answer, or the model carries hooks.
    """
    started = time.perf_counter()
    check_unhooked(model, folder)
    plain = score_answers(model, questions, batch_size=batch_size, folder=folder, progress=progress)
    scores = {"unedited" if editor is not None else "log_probability": plain}
    if editor is not None:
        edited = score_answers(model, questions, editor, batch_size=batch_size, folder=folder, progress=progress)
        scores["edited"] = edited
        there = plain.n_tokens > 0
        if torch.equal(plain.log_probabilities[there], edited.log_probabilities[there]) and not editor.is_identity:
            warnings.warn(
                f"The edit at layers {editor.layers} changed the score of no answer to these {len(questions)} questions. Do "
                "its positions lie beyond them, or does it move activations by less than the model's precision?",
                SeaLensWarning,
                stacklevel=3,
            )
    counted: list[Columns] = [
        {"rows": torch.ones(len(questions), dtype=torch.float64), **columns(found)} for found in scores.values()
    ]
    sides = counted[0], counted[1] if editor is not None else None
    categories = [question.category for question in questions]
    table = metric_table(metrics, *sides, seed=seed, confidence=confidence)
    by_category = metrics_by_category(metrics, categories, *sides, seed=seed, confidence=confidence)
    return Evaluation(
        benchmark,
        metrics[0].name,
        table,
        by_category,
        _per_row(questions, counted),
        _per_answer(questions, scores),
        provenance(
            model,
            editor,
            source=questions.source,
            fingerprint=questions.fingerprint,
            n=len(questions),
            prompt=prompt,
            options={**options, "seed": seed, "confidence": confidence, "batch_size": batch_size},
            seconds=time.perf_counter() - started,
        ),
        scales={metric.name: metric.scale for metric in metrics},
    )


def _per_row(questions: Questions, counted: Sequence[Columns]) -> pd.DataFrame:
    frame: dict[str, list[object]] = {
        "prompt": [question.prompt for question in questions],
        "category": [question.category for question in questions],
    }
    names = [name for name in counted[0] if name != "rows"]
    for name in names:
        if len(counted) == 1:
            frame[name] = counted[0][name].tolist()
        else:
            frame |= {f"{name} unedited": counted[0][name].tolist(), f"{name} edited": counted[1][name].tolist()}
    return pd.DataFrame(frame).rename_axis("row")


def _per_answer(questions: Questions, scores: Mapping[str, AnswerScores]) -> pd.DataFrame:
    first = next(iter(scores.values()))
    answers = [(*question.right, *question.wrong) for question in questions]
    places = [(row, column) for row, own in enumerate(answers) for column in range(len(own))]
    rows, columns = torch.tensor(places).unbind(1)
    return pd.DataFrame(
        {
            "row": rows.tolist(),
            "answer": [answers[row][column] for row, column in places],
            "is_right": first.is_right[rows, columns].tolist(),
            "n_tokens": first.n_tokens[rows, columns].tolist(),
            **{name: found.log_probabilities[rows, columns].tolist() for name, found in scores.items()},
        }
    ).set_index("row")


FORMAT = "sea_lens.evaluation/1"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One benchmark, of one model or of one model before and after an edit.

    Attributes:
        benchmark: Its name, such as `TruthfulQA`.
        headline: The metric that stands for it where one number has to.
        table: One row a metric. Without an editor `n`, `value` and its interval `low` to `high`; with one `n`, `unedited`,
            `edited`, `change` with its paired interval, and `p_value`.
        by_category: The same for every category; empty where rows have none.
        per_row: One row a question (a pair, a text), with what metrics are made of.
        per_answer: One row an answer with its log-probability; empty for benchmarks without answers.
        provenance: What made it: model, editor, data file with its hash, prompt, options, versions, seconds.
        scales: By metric, which values it can have and which is best; of one that is not there nothing is known.
    """

    benchmark: str
    headline: str
    table: pd.DataFrame
    by_category: pd.DataFrame
    per_row: pd.DataFrame
    per_answer: pd.DataFrame
    provenance: Mapping[str, JSON]
    scales: Mapping[str, Scale] = field(default_factory=dict)

    @property
    def is_edited(self) -> bool:
        """Whether an edited model is compared with the unedited one."""
        return "edited" in self.table

    @property
    def score(self) -> float:
        """The headline metric: the edited model's, if there is one."""
        column = self.table["edited" if self.is_edited else "value"]
        return float(column[self.headline])

    def scale(self, metric: str | None = None) -> Scale:
        """Of a metric; of the headline for None."""
        return self.scales.get(self.headline if metric is None else metric, Scale())

    def to_markdown(self) -> str:
        """The table, for a README or an issue."""
        return to_markdown(self.table)

    def to_latex(self) -> str:
        """The table, for a paper."""
        return to_latex(self.table)

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `evaluation.json` (numbers and provenance) and a CSV file for each table that is not empty.

        Returns:
            The files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        metrics = json.loads(self.table.to_json(orient="index", double_precision=15))
        for name, own in metrics.items():
            own["scale"] = str(self.scale(name))
        head = {"format": FORMAT, "benchmark": self.benchmark, "headline": self.headline, "metrics": metrics}
        path = folder / "evaluation.json"
        write_text(path, json.dumps({**head, **self.provenance}, indent=1, ensure_ascii=False) + "\n")
        written = [path]
        tables = {
            "metrics": self.table,
            "categories": self.by_category,
            "rows": self.per_row,
            "answers": self.per_answer,
        }
        for name, table in tables.items():
            if len(table):
                write_text(folder / f"{name}.csv", table.to_csv())
                written.append(folder / f"{name}.csv")
        return written

    def __repr__(self) -> str:
        column = "edited" if self.is_edited else "value"
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.table[column].items())
        return f"Evaluation({self.benchmark}, {column}: {numbers})"


def check_unhooked(model: Model, folder: str | Path | None) -> None:
    """Says so where a model that is to be measured unedited carries hooks already.

    Args:
        model: The model.
        folder: Where numbers are to be kept, if they are: by model and editor, so that another run would take those of the
            model with these hooks for the model's own.

    Raises:
        InputError: If it carries hooks and numbers are to be kept.

    Warns:
        SeaLensWarning: If it carries hooks: "unedited" means with them, then.
    """
    hooked = sorted(name for name, point in model.hook_dict.items() if getattr(point, "fwd_hooks", None))
    if not hooked:
        return
    told = (
        f"The model carries hooks already ({', '.join(hooked[:4])}{', ...' if len(hooked) > 4 else ''}), which are part of "
        "all numbers here, the unedited model's too. Evaluations attach the editor themselves: leave "
        "`with editor.attached(model)`, or call model.reset_hooks()."
    )
    if folder is not None:
        raise InputError(f"{told} To measure the model with these hooks all the same, leave `folder` out.")
    warnings.warn(told, SeaLensWarning, stacklevel=3)


def provenance(
    model: Model,
    editor: Editor | None,
    *,
    source: str,
    fingerprint: str,
    n: int,
    prompt: str,
    options: Mapping[str, JSON],
    seconds: float,
    packages: Sequence[str] = (),
) -> dict[str, JSON]:
    """What made a result, as plain values.

    Args:
        model: The model, unedited.
        editor: The editor, if there was one.
        source: Where the rows come from: a file, of which the hash is taken, or a word.
        fingerprint: Of the rows themselves.
        n: How many rows.
        prompt: What they were put into.
        options: All else that the numbers depend on.
        seconds: Wall time.
        packages: Other packages whose versions matter.
    """
    described = ModelDescription.of(model)
    versions: dict[str, JSON] = dict(library_versions())
    for name in ("transformers", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    made_by: dict[str, JSON] | None = None
    if editor is not None:
        made_by = {
            "fingerprint": editor.fingerprint,
            "method": editor.card.method,
            "settings": editor.card.to_json()["settings"],
            "sites": [str(site) for site in editor.sites],
            "layers": list(editor.layers),
            "strengths": [editor[layer].strength for layer in editor.layers],
            "demonstrations": editor.card.demonstrations,
        }
    return {
        "model": {
            "name": described.name,
            "n_layers": described.n_layers,
            "d_model": described.d_model,
            "weights": described.weights,
            "fingerprint": weights_digest(model),
        },
        "editor": made_by,
        "data": {"source": source, "sha256": file_hash(source), "rows": n, "fingerprint": fingerprint},
        "prompt": prompt,
        "options": dict(options),
        "versions": versions,
        "seconds": round(seconds, 3),
    }


def file_hash(path: str | Path) -> str | None:
    """The SHA-256 of a file's bytes; None for what is no file."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
