"""What stands beside an edited model's scores: what random editors score, and what the edit costs on neutral text."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from typing import Any

import pandas as pd
import torch

from sea_lens.analysis.effects import control_columns
from sea_lens.cache import JSON, Store, digest
from sea_lens.editing.editor import Editor
from sea_lens.errors import BrokenModelWarning, InputError, SeaLensWarning
from sea_lens.evaluation.evaluation import Evaluation, Run
from sea_lens.evaluation.metrics import Columns, Metric
from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.damage import MOST_PROMPTS, Damage, DamageMeter
from sea_lens.models.distributed import from_first
from sea_lens.models.hooks import model_facts
from sea_lens.models.repetition import examples_of
from sea_lens.models.shared_meters import shared_meter
from sea_lens.models.unchanged import unchanged_weights

EXAMPLES = 3
"""Answers that are shown of both models."""
MOST_PARTS = 10
"""Editors whose damage is measured where rows are shared out among many."""
NEW_TOKENS = 24
"""Length of an answer that is shown."""


def changes_of(metrics: Sequence[Metric], unedited: Columns, others: Sequence[Columns]) -> pd.DataFrame:
    """The change of every metric from the unedited model: one row per other model."""
    plain = {metric.name: metric.of(unedited) for metric in metrics}
    rows = [{metric.name: metric.of(other) - plain[metric.name] for metric in metrics} for other in others]
    return pd.DataFrame(rows, columns=list(plain))


def guarded(
    found: Evaluation,
    model: Model,
    editor: EditsModels | None,
    controls: Sequence[Editor],
    changes: pd.DataFrame,
    run: Run,
    *,
    prompts: Sequence[str],
    asked: Sequence[str] | None = None,
    answers: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation:
    """An evaluation of an edited model with its controls and its damage; an unedited model's as it is.

    Args:
        found: The evaluation.
        model: The model, unedited.
        editor: The editor.
        controls: Its controls.
        changes: The change of every metric under each control, a row each.
        run: The keywords of the evaluation.
        prompts: What damage is measured on, besides neutral text.
        asked: The prompts as the benchmark asks them, whose answers are shown; None for `prompts`.
        answers: Both models' answers to all that was asked, `unedited` and `edited`, if the benchmark let them answer.

    Warns:
        BrokenModelWarning: If the edit breaks the model.
    """
    if editor is None:
        return found
    beside, damage = changes, None
    meter = _meter(model, prompts, run, asked)
    if meter is not None:
        damage, *costs = measured(meter, [editor, *controls], run, 0 if answers is not None else EXAMPLES)
        if answers is not None:
            damage = replace(damage, examples=_answered(model, prompts if asked is None else asked, answers))
        beside = _with_costs(beside, costs)
        damage.warn(stacklevel=4)
    table = _with_controls(found.table, changes)
    return replace(found, table=table, damage=damage, controls=beside.rename_axis("control"))


def guarded_by_parts(
    found: Evaluation,
    model: Model,
    editors: Sequence[EditsModels],
    controls: Sequence[Sequence[Editor]],
    changes: pd.DataFrame,
    run: Run,
    *,
    prompts: Sequence[str],
    asked: Sequence[str],
) -> Evaluation:
    """As `guarded`, of an evaluation whose rows were shared out among several editors.

    Damage is the mean over ten of them at most, evenly spread.

    Args:
        found: The evaluation.
        model: The model, unedited.
        editors: The editors.
        controls: The controls of each, equally many.
        changes: The change of every metric under each control, a row each.
        run: The keywords of the evaluation.
        prompts: What damage is measured on, besides neutral text.
        asked: The prompts whose answers are shown, under the first editor.

    Warns:
        BrokenModelWarning: If the edits break the model on average.
    """
    beside, damage = changes, None
    meter = _meter(model, prompts, run, asked)
    if meter is not None:
        some = list(zip(editors, controls, strict=True))[:: -(-len(editors) // MOST_PARTS)]
        by_part = [
            measured(meter, [editor, *own], run, 0 if number else EXAMPLES) for number, (editor, own) in enumerate(some)
        ]
        damage, *costs = map(_mean, zip(*by_part, strict=True))
        beside = _with_costs(beside, costs)
        damage.warn(stacklevel=4)
    table = _with_controls(found.table, changes)
    return replace(found, table=table, damage=damage, controls=beside.rename_axis("control"))


def _meter(model: Model, prompts: Sequence[str], run: Run, asked: Sequence[str] | None) -> DamageMeter | None:
    """What measures damage; None, with a warning, where there is no text to measure it on."""
    if not run.damage:
        return None
    batch_size = min(run.batch_size, MOST_PROMPTS)
    try:
        return shared_meter(DamageMeter.of(model, prompts, run.neutral_texts, asked=asked, batch_size=batch_size))
    except InputError as error:
        warnings.warn(f"Damage is not measured. {error}", SeaLensWarning, stacklevel=5)
        return None


def _mean(damages: Sequence[Damage]) -> Damage:
    """The damage of several editors on the same texts: KL and log-perplexity, averaged."""
    first = damages[0]
    kl = torch.tensor([damage.table["kl"].tolist() for damage in damages], dtype=torch.float64).mean(0)
    edited = torch.tensor([damage.table["edited"].tolist() for damage in damages], dtype=torch.float64).log().mean(0)
    return replace(first, table=first.table.assign(edited=edited.exp().tolist(), kl=kl.tolist()))


def _with_costs(beside: pd.DataFrame, costs: Sequence[Damage]) -> pd.DataFrame:
    return beside.assign(
        damage_kl=[cost.kl for cost in costs],
        damage_perplexity_ratio=[cost.perplexity_ratio for cost in costs],
        is_broken=[cost.is_broken for cost in costs],
    )


def _with_controls(table: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """A table with what controls change beside what the editor does."""
    if changes.empty:
        return table
    names = [name for name in table.index if name in changes]
    own = torch.tensor(table.loc[names, "change"].to_numpy(dtype=float))
    columns = control_columns(own, torch.tensor(changes[names].to_numpy(dtype=float).T))
    told = pd.DataFrame({name: values.tolist() for name, values in columns.items()}, index=names)
    note = [name for name in ("note",) if name in table]
    return table.drop(columns=note).join(told).join(table[note]).rename_axis(table.index.names)


def measured(meter: DamageMeter, editors: Sequence[EditsModels], run: Run, examples: int = 0) -> list[Damage]:
    """The damage of editors, the first with examples; kept in the folder of the run if it has one.

    Each kind of text is kept by itself: the neutral texts of one benchmark are those of the next.
    """
    tables: list[list[pd.DataFrame]] = [[] for _ in editors]
    shown = [pd.DataFrame() for _ in editors]
    with unchanged_weights():
        for kind, unedited in meter.predictions.items():
            part = replace(meter, predictions={kind: unedited})
            facts = {"texts": digest(unedited.rows), "kind": kind}
            for own, table in zip(tables, _kept(part, editors, run, facts, _tables), strict=True):
                own.append(table)
        if examples and meter.asked:
            asked: dict[str, JSON] = {"asked": digest(meter.asked[:examples]), "examples": examples}
            shown[:1] = _kept(meter, editors[:1], run, asked, partial(_shown, examples=examples))
    return [
        Damage(pd.concat(table).set_index("text"), said, meter.limits)
        for table, said in zip(tables, shown, strict=True)
    ]


def _tables(meter: DamageMeter, editors: Sequence[EditsModels]) -> list[pd.DataFrame]:
    return [damage.table.reset_index() for damage in meter.measure_all(editors)]


def _shown(meter: DamageMeter, editors: Sequence[EditsModels], examples: int) -> list[pd.DataFrame]:
    return [meter.examples(editor, examples, NEW_TOKENS) for editor in editors]


def _kept(
    meter: DamageMeter,
    editors: Sequence[EditsModels],
    run: Run,
    facts: Mapping[str, JSON],
    measure: Callable[[DamageMeter, Sequence[EditsModels]], list[pd.DataFrame]],
) -> list[pd.DataFrame]:
    """A table per editor, from the folder of the run if it is there."""
    if run.folder is None:
        return measure(meter, editors)
    common = {**facts, "batch_size": meter.batch_size}
    stores = [Store.within(run.folder, "damage", common | model_facts(meter.model, editor)) for editor in editors]
    rows: list[list[Any]] = [from_first(store.rows()) for store in stores]
    found = {number: pd.DataFrame(kept[0]) for number, kept in enumerate(rows) if kept}
    left = [number for number in range(len(editors)) if number not in found]
    if left:
        for number, table in zip(left, measure(meter, [editors[number] for number in left]), strict=True):
            stores[number].append(_records(table))
            found[number] = table
    return [found[number] for number in range(len(editors))]


def _records(frame: pd.DataFrame) -> Any:
    return json.loads(json.dumps(frame.to_dict("records")))


def _answered(model: Model, prompts: Sequence[str], answers: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Some of the answers, evenly spread, as examples."""
    some = slice(None, None, -(-len(prompts) // MOST_PROMPTS))
    return examples_of(model, prompts[some], answers["unedited"][some], answers["edited"][some])


def passing_on(benchmark: Callable[..., Evaluation], **keywords: object) -> Callable[..., Evaluation]:
    """A benchmark with those of these keywords that it takes and that were not filled in before.

    One whose own `control` is 0, as that of lm-eval's tasks, keeps it.
    """
    taken = signature(benchmark).parameters
    open_ended = any(one.kind is one.VAR_KEYWORD for one in taken.values())
    given = set(benchmark.keywords) if isinstance(benchmark, partial) else set()
    kept = {
        name: value
        for name, value in keywords.items()
        if name not in given and (name in taken or open_ended) and not (name == "control" and _usual(taken, name) == 0)
    }
    return partial(benchmark, **kept)


def _usual(taken: Mapping[str, Parameter], name: str) -> object:
    return taken[name].default if name in taken else None


def guarded_from_outside(
    found: Evaluation, model: Model, editor: Editor | None, evaluate: Callable[[Editor], Evaluation], run: Run
) -> Evaluation:
    """A result of a benchmark that knows of no damage and no controls, with both, as far as its tables tell.

    Args:
        found: The result.
        model: The model, unedited.
        editor: The editor.
        evaluate: Evaluates another editor.
        run: How many controls there are to be, and whether damage is measured.
    """
    if editor is None or found.damage is not None or "control" in found.table:
        return found
    controls = run.controls_of(editor)
    changes = pd.DataFrame([evaluate(control).table["change"] for control in controls]).reset_index(drop=True)
    texts = [text for name in ("prompt", "begins") if name in found.per_row for text in found.per_row[name]]
    return guarded(found, model, editor, controls, changes, run, prompts=texts)


@contextmanager
def unwarned() -> Iterator[None]:
    """A block in which broken editors are not warned of, for those who say it themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenModelWarning)
        yield
