"""The result of every benchmark: metrics before and after an edit, what they are made of, and what made them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path

import pandas as pd

from sea_lens.cache import JSON
from sea_lens.cells import number_text
from sea_lens.data.questions import Questions
from sea_lens.editing.card import library_versions
from sea_lens.editing.controls import control_editors
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.metrics import Scale
from sea_lens.models.bridge import Model, ModelInfo, check_is_model
from sea_lens.models.damage import Damage
from sea_lens.models.hooks import attached_editors, foreign_hooks
from sea_lens.models.unchanged import known_weights
from sea_lens.results import Result, readable, screen
from sea_lens.versions import versions_of

SHOWN = 3
"""Answers of both models that a screen shows."""


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
        control: How many norm-matched random editors to evaluate as well (see `random_editor_like`), or editors of your own,
            such as refits on `activations.shuffled(seed)`. 0 turns it off.
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on the prompts and on neutral text (see `measure_damage`).
    """

    seed: int = 0
    confidence: float = 0.95
    batch_size: int = 32
    folder: str | Path | None = None
    progress: bool = True
    control: int | Sequence[Editor] = 3
    neutral_texts: Sequence[str] | None = None
    damage: bool = True

    def __post_init__(self) -> None:
        are_numbers = isinstance(self.batch_size, Integral) and isinstance(self.confidence, Real)
        if not are_numbers or self.batch_size < 1 or not 0 < self.confidence < 1:
            raise InputError(
                f"batch_size must be at least 1 and confidence inside (0, 1); {self.batch_size!r} and {self.confidence!r} "
                "were given."
            )
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, and {self.seed!r} was given.")
        is_number = isinstance(self.control, Integral) and self.control >= 0
        are_editors = isinstance(self.control, Sequence) and all(isinstance(one, Editor) for one in self.control)
        if not is_number and not are_editors:
            raise InputError(f"control is a number of random editors, or editors, and {self.control!r:.60} was given.")
        if isinstance(self.neutral_texts, str):
            raise InputError(f"neutral_texts is a list of texts, and {self.neutral_texts!r:.60} was given.")

    def controls_of(self, editor: Editor | None) -> list[Editor]:
        """The controls that an editor is to be compared with; none for no editor.

        Raises:
            InputError: If a control edits other sites than the editor.
        """
        return [] if editor is None else control_editors(editor, self.control, self.seed)

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
            Price's or Student's, and `note` says where an interval and a test disagree (see `metric_table`). With controls
            also their mean change `control`, the least and the greatest `control_low` and `control_high`, and
            `control_p_value`: how often a control changes as much, at least 1 / (n_controls + 1).
        by_category: The same per category; empty where rows have no category.
        per_row: One row per question, pair or text, with what the metrics are computed from.
        per_answer: One row per answer with its log-probability; empty for benchmarks without answers.
        provenance: Model, editor, data with its hash, prompt, options, versions and seconds.
        scales: By metric, the values it can have and the best of them.
        damage: What the edit costs on the prompts and on neutral text; None without an editor, or where it was not measured.
        controls: One row per control: the change of each metric; of its damage `damage_kl`, `damage_perplexity_ratio` and
            `is_broken`, as `Damage` has them. To beat controls that are themselves broken means little.

    Example:
        >>> found = sl.evaluate_truthfulqa(model, questions, editor, control=0)
        >>> found.headline, found.is_broken, found.table.index.tolist()
        ('MC1', False, ['MC1', 'MC2', 'MC3'])
    """

    benchmark: str
    headline: str
    table: pd.DataFrame
    by_category: pd.DataFrame
    per_row: pd.DataFrame
    per_answer: pd.DataFrame
    provenance: Mapping[str, JSON]
    scales: Mapping[str, Scale] = field(default_factory=dict)
    damage: Damage | None = None
    controls: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def is_broken(self) -> bool:
        """Whether the edit breaks the model, so that its scores say little. False where damage was not measured."""
        return self.damage is not None and self.damage.is_broken

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

    @property
    def findings(self) -> list[str]:
        """What has to be said beside the scores: the damage of the edit and of its controls, a line each."""
        if not self.is_edited:
            return []
        found = ["Damage: not measured." if self.damage is None else f"Damage: {self.damage.summary}"]
        if len(self.controls):
            told = f"Controls: {len(self.controls)}"
            if "damage_kl" in self.controls:
                costs = self.controls["damage_kl"]
                least, most = map(number_text, (costs.min(), costs.max()))
                told += f", KL {least if least == most else f'{least} to {most}'} nats per token"
                broken = int(self.controls["is_broken"].sum())
                if broken:
                    told += f"; {broken} of them break the model, so beating them means little"
            found.append(f"{told}.")
        return found

    def _below(self) -> str:
        shown = [] if self.damage is None or self.damage.examples.empty else [screen(readable(self.examples))]
        return "\n".join([*self.findings, *shown])

    @property
    def examples(self) -> pd.DataFrame:
        """A few prompts with both models' answers; empty where none are known."""
        known = pd.DataFrame() if self.damage is None else self.damage.examples
        return known if known.empty else known.iloc[:SHOWN][["prompt", "unedited", "edited"]]


def check_model(model: Model, editor: object) -> None:
    """Checks that a model can be evaluated, and warns of what would make its numbers others than the model's own.

    Hooks that TransformerLens itself puts on a model (OPT and BERT have some) do not count. In a folder, numbers are kept by
    the editors that are attached; hooks of other kinds are refused there, as nobody knows what they do.

    Args:
        model: The model, unedited.
        editor: The editor, or None.

    Raises:
        ModelMismatchError: If the model is no TransformerBridge, or does not predict the next token of a text.
        InputError: If the editor is something else.

    Warns:
        SeaLensWarning: If the model carries an editor's or other hooks of the user's, or is in training mode.
    """
    check_is_model(model)
    if not isinstance(editor, Editor | None):
        raise InputError(
            f"An editor is needed, and a {type(editor).__name__} was given. Read one with Editor.from_pretrained(folder)."
        )
    found = [f"the editor {editor.fingerprint}" for editor in attached_editors(model)] + foreign_hooks(model)
    if found:
        warnings.warn(
            f"The model already carries hooks ({', '.join(found[:4])}{', ...' if len(found) > 4 else ''}), so all numbers "
            "here are of the model with them. Evaluations attach the editor themselves: leave `with "
            "editor.attached(model)`, or call model.reset_hooks().",
            SeaLensWarning,
            stacklevel=3,
        )


def check_questions(questions: object) -> None:
    """Checks that questions were given, and not a path or a list.

    Raises:
        InputError: If they are something else.
    """
    if not isinstance(questions, Questions):
        raise InputError(
            f"Questions are needed, and a {type(questions).__name__} was given. Read them from a file, as with "
            "Questions.from_truthfulqa(path), or make them with Questions.from_lists."
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
    versions: dict[str, JSON] = {**library_versions(), **versions_of("transformers", *packages)}
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
            "fingerprint": known_weights(model),
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
