"""The result of every benchmark: metrics before and after an edit, what they are made of, and what made them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from sea_lens.cache import JSON
from sea_lens.editing.card import library_versions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.metrics import Scale
from sea_lens.models.bridge import Model, ModelInfo, weights_digest
from sea_lens.models.hooks import attached_editors, foreign_hooks
from sea_lens.results import Result


@dataclass(frozen=True)
class Run:
    """The keywords that every evaluation has, with their defaults.

    Attributes:
        seed: Seed of the resamples and of the permutation test.
        confidence: Confidence of the intervals, inside (0, 1).
        batch_size: Rows of tokens per forward pass. It bounds memory and changes no result, apart from rounding.
        folder: A folder for finished batches: a killed run continues there, and a run with another editor finds the
            unedited model's numbers there.
        progress: Whether to show progress bars.
    """

    seed: int = 0
    confidence: float = 0.95
    batch_size: int = 32
    folder: str | Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 < self.confidence < 1:
            raise InputError(
                f"batch_size must be at least 1 and confidence inside (0, 1); {self.batch_size} and {self.confidence} were "
                "given."
            )

    @property
    def facts(self) -> dict[str, JSON]:
        """Those that numbers depend on, if only by rounding."""
        return {"seed": self.seed, "confidence": self.confidence, "batch_size": self.batch_size}


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Result):
    """One benchmark on one model, or on one model before and after an edit.

    Attributes:
        benchmark: The benchmark's name, such as `TruthfulQA`.
        headline: The metric that stands for the benchmark where one number must.
        table: One row per metric. Without an editor: `n`, `value` and its interval `low` to `high`. With one: `n`,
            `unedited`, `edited`, `change` with its paired interval `low` to `high`, and `p_value` of a paired permutation
            test. Intervals are percentile bootstraps over rows; those of means of fewer than 30 rows are Wilson's, Bonett and
            Price's or Student's (see `metric_table`).
        by_category: The same per category; empty where rows have no category.
        per_row: One row per question, pair or text, with what the metrics are computed from.
        per_answer: One row per answer with its log-probability; empty for benchmarks without answers.
        provenance: Model, editor, data with its hash, prompt, options, versions and seconds.
        scales: By metric, the values it can have and the best of them.
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
        """The headline metric, of the edited model if there is one."""
        column = self.table["edited" if self.is_edited else "value"]
        return float(column[self.headline])

    def scale(self, metric: str | None = None) -> Scale:
        """The scale of a metric, or of the headline for None; one where no value is best if none is known."""
        return self.scales.get(self.headline if metric is None else metric, Scale())


def warn_of_hooks(model: Model) -> None:
    """Warns if a model that is to be measured unedited carries an editor's or other hooks of the user's.

    Hooks that TransformerLens itself puts on a model (OPT and BERT have some) do not count. In a folder, numbers are kept by
    the editors that are attached; hooks of other kinds are refused there, as nobody knows what they do.

    Args:
        model: The model.

    Warns:
        SeaLensWarning: If the model carries hooks: all numbers are then of the model with them.
    """
    found = [f"the editor {editor.fingerprint}" for editor in attached_editors(model)] + foreign_hooks(model)
    if found:
        warnings.warn(
            f"The model already carries hooks ({', '.join(found[:4])}{', ...' if len(found) > 4 else ''}), so all numbers "
            "here are of the model with them. Evaluations attach the editor themselves: leave `with "
            "editor.attached(model)`, or call model.reset_hooks().",
            SeaLensWarning,
            stacklevel=3,
        )


def no_change(what: str) -> str:
    """The warning that an editor which is not the identity changed nothing."""
    return (
        f"The editor changed no {what}. Either its positions lie beyond them, or it moves activations by less than the "
        "model's precision."
    )


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
        editor: The editor, if there is one.
        source: Where the rows come from: a file, which is hashed, or a word.
        fingerprint: Digest of the rows.
        n: Number of rows.
        prompt: The template that the rows are put into.
        options: Everything else that the numbers depend on.
        seconds: Wall time.
        packages: Further packages whose versions matter.
    """
    described = ModelInfo.of(model)
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
            "strengths": [edit.strength for edit in editor.edits.values()],
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
    """The SHA-256 of a file; None if there is no such file."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
