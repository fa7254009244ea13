"""Edited facts: does the model say the new object, in other words too, and is all else as it was?

The measures are those of CounterFact (Meng et al. 2022) with what it lacks: other facts of the same subject, the unedited
model on the same prompts, random editors that move every token as far, and what the edit costs on neutral text.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from sea_lens.arguments import check_arguments
from sea_lens.cache import digest
from sea_lens.data.fact_files import read_facts
from sea_lens.data.facts import FactEdit, check_facts
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.benchmark import register_benchmark
from sea_lens.evaluation.evaluation import Evaluation, Run, check_model, no_change, provenance
from sea_lens.evaluation.fact_prompts import KINDS, LIKELIER, STAY_KL, FactPrompts, fact_metrics
from sea_lens.evaluation.guard import changes_of, guarded_by_parts
from sea_lens.evaluation.metrics import Columns, metric_table, metrics_by_category
from sea_lens.evaluation.said import EditsWeights, WeightsAsEditor
from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.unchanged import unchanged_weights

EditOfFacts = Editor | EditsWeights
"""An editor, or anything that edits a model while it is attached."""
FitsFacts = Callable[[Sequence[FactEdit]], EditOfFacts]


@register_benchmark("knowledge", reads=read_facts)
def evaluate_knowledge(
    model: Model,
    facts: Sequence[FactEdit],
    editor: EditOfFacts | None = None,
    *,
    control: int | Sequence[Editor] = 3,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measures an edit of some facts: does the model say the new objects, and leave all else alone?

    Every metric is the mean over facts of the share of a fact's prompts. Intervals and tests resample facts, so that prompts
    of one fact are not taken for independent. All facts are edited at once: for batches, see `evaluate_edits`.

    - **efficacy**: the model says the new object, token by token the likeliest, after the prompt that was edited.
    - **paraphrase**: it does so after other wordings of the fact.
    - **same_subject**: it says the known answer after prompts about other facts of the same subject.
    - **neighborhood**: it says the known answer after prompts about other subjects.
    - **efficacy_likelier**, **paraphrase_likelier**: the new object is likelier than the true one. CounterFact counts this,
      and it is a low bar. **neighborhood_likelier**: the known answer is likelier than the new object.
    - **stay_kl**: KL(unedited || edited), in nats, of what comes next after the prompts of the last two; it should be 0.
      Edits of the last token of a prompt alone, such as SAKE's, have no other damage: no other token sees them.
    - **harmonic_mean**: of the first four, as far as the facts have such prompts; 0 if one of them is 0.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        facts: What is edited, with its paraphrases and what should stay: `sl.read_facts(path)`.
        editor: The editor of all these facts; or an edit of weights, which has no norm-matched control. The unedited model is
            then measured too, and compared.
        control: How many norm-matched random editors to evaluate as well, or editors of your own; 0 for none.
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on the prompts that should stay and on neutral text.
        seed: Seed of the intervals, the permutation test and the controls.
        confidence: Confidence of the intervals.
        batch_size: Rows of tokens per forward pass. It changes no result, apart from rounding.
        folder: A folder for finished batches. A killed run continues there, and the unedited model is not run again for
            another editor.
        progress: Whether to show progress bars.

    Returns:
        The evaluation, with shares of prompts from 0 to 1; `per_row` has one row per fact.

    Raises:
        InputError: If there are no facts, or two of them contradict each other.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes nothing, or the model carries hooks.
        BrokenModelWarning: If the edit breaks the model.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> found = sl.evaluate_knowledge(model, people.edits(4))
        >>> found.table.loc[["efficacy", "same_subject"], "value"].tolist()
        [0.0, 1.0]
    """
    check_arguments(evaluate_knowledge, locals())
    run = Run(seed, confidence, batch_size, folder, progress, control, neutral_texts, damage)
    given, edit = check_facts(facts), _as_editor(editor)
    check_model(model, editor if isinstance(editor, Editor) else None)
    return _evaluate(model, given, None if edit is None else [(range(len(given)), edit)], run, {})


def evaluate_edits(
    model: Model,
    facts: Sequence[FactEdit],
    fit: FitsFacts,
    *,
    at_once: int = 1,
    control: int = 3,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Edits facts so many at a time, each batch in the unedited model, and measures each on its own facts.

    What `evaluate_knowledge` measures, pooled over batches. Damage is the mean over ten of them, evenly spread.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        facts: What is edited.
        fit: Makes an editor of some facts, such as `partial(sl.MEMIT().fit_facts, model)`.
        at_once: How many facts one editor edits; the last batch may have fewer.
        control: How many norm-matched random editors to evaluate for each batch; 0 for none.
        neutral_texts: As of `evaluate_knowledge`, as are all others.
        damage: The same.
        seed: The same.
        confidence: The same.
        batch_size: The same.
        folder: The same.
        progress: The same.

    Returns:
        The evaluation, with one row per fact in `per_row`.

    Raises:
        InputError: If there are no facts, two of them contradict each other, or `fit` gives no editor.

    Warns:
        BrokenModelWarning: If the edits break the model.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> def by_mean(facts):
        ...     return sl.join_facts([sl.SAKE(transport="mean").fit(people.collect(model, fact)) for fact in facts])
        >>> found = sl.evaluate_edits(model, people.edits(2), by_mean, at_once=1, control=0, damage=False)
        >>> found.table.loc["efficacy", ["unedited", "edited"]].tolist()
        [0.0, 1.0]
    """
    check_arguments(evaluate_edits, locals())
    run = Run(seed, confidence, batch_size, folder, progress, control, neutral_texts, damage)
    given = check_facts(facts)
    if at_once < 1:
        raise InputError(f"at_once is how many facts one editor edits, 1 at least, and {at_once} was given.")
    check_model(model, None)
    parts = []
    for start in range(0, len(given), at_once):
        own = range(start, min(start + at_once, len(given)))
        edit = _as_editor(fit([given[number] for number in own]))
        if edit is None:
            raise InputError("fit returned None, and an editor is needed. Let it return the editor of the facts given.")
        parts.append((own, edit))
    return _evaluate(model, given, parts, run, {"at_once": at_once})


def _as_editor(edit: EditOfFacts | None) -> EditsModels | None:
    if edit is None or isinstance(edit, Editor):
        return edit
    if isinstance(edit, EditsWeights):
        return WeightsAsEditor(edit)
    raise InputError(
        f"An editor is needed, or something with attached(model), such as sl.WeightEdit; a {type(edit).__name__} was given."
    )


def _fitted(edit: EditsModels | None) -> Editor | None:
    """The editor that an edit is, or that an edit of weights was made from."""
    found = getattr(edit.edit, "editor", None) if isinstance(edit, WeightsAsEditor) else edit
    return found if isinstance(found, Editor) else None


def _evaluate(
    model: Model,
    facts: Sequence[FactEdit],
    parts: Sequence[tuple[Sequence[int], EditsModels]] | None,
    run: Run,
    options: Mapping[str, int],
) -> Evaluation:
    started = time.perf_counter()
    controls = [[] if not isinstance(editor, Editor) else run.controls_of(editor) for _, editor in parts or ()]
    with unchanged_weights():
        asked, everything = FactPrompts.of(model, facts), [(range(len(facts)), None)]
        plain = asked.said(model, everything, run)
        said = {"": plain}
        if parts is not None:
            said = {" unedited": plain, " edited": asked.said(model, parts, run)}
            same = torch.equal(plain.log_probabilities.nan_to_num(), said[" edited"].log_probabilities.nan_to_num())
            if same and not all(editor.is_identity for _, editor in parts):
                warnings.warn(no_change(f"answer about these {len(facts)} facts"), SeaLensWarning, stacklevel=3)
        counted = {side: asked.columns(found, plain) for side, found in said.items()}
        first, *second = counted.values()
        metrics = fact_metrics(first)
        beside = [
            asked.columns(
                asked.said(model, [(own, one) for (own, _), one in zip(parts, others, strict=True)], run), plain
            )
            for others in zip(*controls, strict=True)
            if parts is not None
        ]
        categories = [fact.relation for fact in facts]
        both = (first, second[0] if second else None)
        tables = partial(metric_table, seed=run.seed, confidence=run.confidence)
        by_category = partial(metrics_by_category, seed=run.seed, confidence=run.confidence)
        editor = None if parts is None else parts[0][1]
        found = Evaluation(
            "Knowledge",
            metrics[0].name,
            tables(metrics, *both),
            by_category(metrics, categories, *both),
            _per_row(facts, counted),
            asked.per_answer(said),
            provenance(
                model,
                _fitted(editor),
                source="facts",
                fingerprint=digest([(fact.text, fact.target_new) for fact in facts]),
                n=len(facts),
                prompt="{question}",
                options={**options, **run.facts},
                seconds=time.perf_counter() - started,
            ),
            {metric.name: metric.scale for metric in metrics},
        )
        if parts is None:
            return found
        stay = asked.rows[asked.rows["kind"].isin(KINDS[2:])]["prompt"]
        return guarded_by_parts(
            found,
            model,
            [editor for _, editor in parts],
            controls,
            changes_of(metrics, first, beside),
            run,
            prompts=list(dict.fromkeys(stay)),
            asked=[text for fact in facts for text in (fact.generation or (fact.text,))],
        )


def _per_row(facts: Sequence[FactEdit], counted: Mapping[str, Columns]) -> pd.DataFrame:
    frame: dict[str, Sequence[object]] = {
        "prompt": [fact.text for fact in facts],
        "category": [fact.relation for fact in facts],
        "new": [fact.target_new for fact in facts],
    }
    for name in (*KINDS, *(f"{kind}_likelier" for kind in LIKELIER), STAY_KL):
        for side, columns in counted.items():
            if f"has {name}" in columns and bool(columns[f"has {name}"].any()):
                frame[f"{name}{side}"] = columns[name].where(columns[f"has {name}"] > 0, torch.nan).tolist()
    return pd.DataFrame(frame).rename_axis("row")
