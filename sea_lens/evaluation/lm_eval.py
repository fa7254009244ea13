"""The tasks of EleutherAI's lm-evaluation-harness on an edited model, run by the harness itself.

lm-eval's own `HFLM` gets the Hugging Face model that the bridge wraps, under the editor's hooks. So prompts, extraction of
answers and metrics are lm-eval's, and its numbers are those that the field reports. Needs `pip install "sea-lens[eval]"`.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sea_lens.arguments import check_arguments
from sea_lens.cache import JSON, Store, digest
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import register_benchmark
from sea_lens.evaluation.evaluation import Evaluation, Run, check_model, provenance
from sea_lens.evaluation.guard import guarded
from sea_lens.evaluation.lm_eval_results import TaskResults, facts_of, sample_table, score_table
from sea_lens.models.bridge import Model, tokenizer_of
from sea_lens.models.hooks import model_facts
from sea_lens.models.prefixes import how_to_run

KEPT = (
    "results",
    "groups",
    "group_subtasks",
    "samples",
    "configs",
    "versions",
    "n-shot",
    "n-samples",
    "higher_is_better",
)
"""The keys of lm-eval's results that we keep."""
KEPT_OF_SAMPLES = ("doc_id", "doc_hash", "filter", "target", "filtered_resps")
WHOLE_FILES = 2**24
"""Bytes of a file in a task folder beyond which it is told by its size."""


@register_benchmark("lm-eval", reads="tasks")
def evaluate_lm_eval(
    model: Model,
    tasks: Sequence[str],
    editor: Editor | None = None,
    *,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    chat: bool = False,
    task_folder: str | Path | None = None,
    model_options: Mapping[str, JSON] | None = None,
    options: Mapping[str, JSON] | None = None,
    control: int | Sequence[Editor] = 0,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Runs tasks of lm-evaluation-harness, such as HellaSwag, MMLU and GSM8K, on the edited model.

    A metric that is a mean over samples (accuracy, exact match) gets a paired interval over lm-eval's own samples (see
    `metric_table`), and a p-value; other metrics (corpus BLEU, perplexity) have lm-eval's standard errors only. The column
    `interval` says which. Groups such as `mmlu` come with their tasks; their samples are pooled where lm-eval weights tasks
    by size.

    The tokenizer is the bridge's, which puts the beginning-of-sequence token before a text where TransformerLens says that
    the model wants one; `model_options={"add_bos_token": False}` changes that.

    Args:
        model: A TransformerBridge with a tokenizer, unedited. It is left as it was.
        tasks: Names of lm-eval's tasks and groups, or of those in `task_folder`.
        editor: The editor to compare the unedited model with.
        num_fewshot: Worked examples per prompt; None is each task's own number.
        limit: Samples per task, or a share of them below 1. For trials: lm-eval takes the first ones.
        chat: Whether to put prompts into the tokenizer's chat template (lm-eval's `apply_chat_template`).
        task_folder: A folder with your own task files (YAML); lm-eval's `include_path`.
        model_options: Further keywords of `lm_eval.models.huggingface.HFLM`, such as `max_length`.
        options: Further keywords of `lm_eval.simple_evaluate`, such as `system_instruction`.
        control: How many norm-matched random editors to evaluate as well, or editors of your own. None by default: each runs
            all tasks, which take hours on a large model.
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on neutral text. The tasks' prompts are lm-eval's to know.
        seed: Seed of the resamples and the controls. lm-eval's own seeds are set by `options`.
        confidence: Confidence of the intervals.
        batch_size: Texts per forward pass. It changes no result, apart from rounding.
        folder: A folder for finished tasks. A killed run continues there, and the unedited model is not run again for another
            editor.
        progress: Whether lm-eval shows its progress bars while the model runs.

    Returns:
        The evaluation. Rows of `table` are named by task, metric and filter; `per_row` has one row per sample and filter.

    Raises:
        InputError: If lm-eval is not installed, a task is unknown, or the two models did not see the same samples.
        ModelMismatchError: If the model is no TransformerBridge, or the editor does not fit it.
        HookNeverFiredError: If lm-eval's passes did not reach the editor.

    Warns:
        SeaLensWarning: If the model carries hooks.
        BrokenModelWarning: If the edit breaks the model.

    Example:
        >>> found = sl.evaluate_lm_eval(model, ["hellaswag"], editor, limit=100)  # doctest: +SKIP
    """
    check_arguments(evaluate_lm_eval, locals())
    began = time.monotonic()
    run = Run(seed, confidence, batch_size, folder, progress, control, neutral_texts, damage)
    check_model(model, editor)
    if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks):
        raise InputError(f"Give a list of different lm-eval tasks, such as ['hellaswag', 'mmlu']; {tasks!r} was given.")
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and float(limit).is_integer())):
        raise InputError(f"limit is a number of samples per task, or a share of them below 1; {limit} was given.")
    lm_eval = _lm_eval()
    if editor is not None:
        editor.check(model)
    batch_size, _ = how_to_run(model, editor, batch_size, share_prefix=False, longest=model.cfg.n_ctx, side="left")
    asked: dict[str, Any] = {
        "num_fewshot": num_fewshot,
        "limit": limit,
        "batch_size": batch_size,
        "model_options": dict(model_options or {}),
        "options": {**({"apply_chat_template": True} if chat else {}), **(options or {})},
        "task_files": None if task_folder is None else _files_digest(Path(task_folder)),
    }
    manager = None
    runs: list[dict[str, TaskResults]] = []
    controls = run.controls_of(editor)
    for edit in (None,) if editor is None else (None, editor, *controls):
        found: dict[str, TaskResults] = {}
        for task in tasks:
            store, kept = None, list[Any]()
            if folder is not None:
                made_by = {
                    "lm_eval": lm_eval.__version__,
                    "task": task,
                    **model_facts(model, edit),
                    **asked,
                }
                store = Store.within(folder, "lm-eval", made_by)
                kept = store.rows()
            if not kept:
                manager = manager or _task_manager(tasks, task_folder)
                kept = [_run(model, edit, task, asked, manager, progress)]
                if store is not None:
                    store.append(kept[0])
            found[task] = kept[0]
        runs.append(found)
    table, scales = score_table(runs[:2], seed, confidence)
    per_row = sample_table(runs[:2])
    evaluation = Evaluation(
        benchmark="lm-eval",
        headline=str(table.index[0]),
        table=table,
        by_category=pd.DataFrame(),
        per_row=per_row,
        per_answer=pd.DataFrame(),
        provenance={
            **provenance(
                model,
                editor,
                source="lm-eval" if task_folder is None else str(task_folder),
                fingerprint=digest([str(value) for value in per_row["doc_hash"]]),
                n=len(per_row),
                prompt="lm-eval's, by task",
                options={**run.facts, **asked, "tasks": list(tasks)},
                seconds=time.monotonic() - began,
                packages=("lm-eval", "datasets"),
            ),
            "tasks": {name: facts for results in runs[0].values() for name, facts in facts_of(results).items()},
        },
        scales=scales,
    )
    changes = pd.DataFrame([score_table([runs[0], beside], seed, confidence)[0]["change"] for beside in runs[2:]])
    return guarded(evaluation, model, editor, controls, changes.reset_index(drop=True), run, prompts=())


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(
            f'lm-eval could not be imported ({error}). Install it with: pip install "sea-lens[eval]"'
        ) from error
    return lm_eval


def _task_manager(tasks: Sequence[str], task_folder: str | Path | None) -> Any:
    """The tasks that lm-eval knows. Its own thousands take 20 seconds, and are read only if the folder lacks one."""
    make = _lm_eval().tasks.TaskManager
    if task_folder is not None:
        if not Path(task_folder).is_dir():
            raise InputError(f"There is no folder {task_folder}. Give the folder that holds the tasks' YAML files.")
        manager = make(include_path=str(task_folder), include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = make(include_path=None if task_folder is None else str(task_folder))
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        where = "" if task_folder is None else f", and {task_folder} holds none of that name"
        raise InputError(f"lm-eval has no task {', '.join(unknown)}{where}. List its tasks with: lm-eval ls tasks")
    return manager


def _run(
    model: Model, editor: Editor | None, task: str, asked: Mapping[str, Any], manager: Any, progress: bool
) -> dict[str, JSON]:
    """Runs one task on one model: the results that are needed, as plain values."""
    lm_eval = _lm_eval()
    hf_model: torch.nn.Module = model.original_model
    with left_as_it_was(hf_model):
        log = logging.getLogger("lm_eval")
        level = log.level
        log.setLevel(logging.ERROR)  # it warns that it was given a model and not a name
        try:
            harness = lm_eval.models.huggingface.HFLM(
                pretrained=hf_model,
                tokenizer=copy.deepcopy(tokenizer_of(model)),  # lm-eval sets its padding token and side
                backend="causal",
                batch_size=asked["batch_size"],
                **asked["model_options"],
            )
        finally:
            log.setLevel(level)
        if not progress:
            for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
                setattr(harness, name, partial(getattr(harness, name), disable_tqdm=True))
        with editor.attached(model) if editor is not None else nullcontext():
            results = lm_eval.simple_evaluate(
                model=harness,
                tasks=[task],
                num_fewshot=asked["num_fewshot"],
                limit=asked["limit"],
                task_manager=manager,
                log_samples=True,
                **asked["options"],
            )
    for samples in results["samples"].values():
        samples[:] = [
            {name: sample[name] for name in KEPT_OF_SAMPLES}
            | {"metrics": {name: _number(sample[name]) for name in sample["metrics"]}}
            for sample in samples
        ]
    plain: dict[str, JSON] = json.loads(json.dumps({name: results.get(name) or {} for name in KEPT}, default=_plain))
    return plain


@contextmanager
def left_as_it_was(hf_model: torch.nn.Module) -> Iterator[None]:
    """Undoes what lm-eval does to a model and to the random numbers of this process."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    modes = {module: module.training for module in hf_model.modules()}
    generation = copy.deepcopy(getattr(hf_model, "generation_config", None))
    # HFLM ties input and output embeddings again, which would undo TransformerLens's processing of weights.
    hf_model.tie_weights = lambda *args, **options: None  # type: ignore[assignment]
    try:
        yield
    finally:
        del hf_model.tie_weights
        for module, mode in modes.items():
            module.training = mode
        if generation is not None:
            hf_model.generation_config = generation
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _number(value: object) -> float | None:
    """A sample's metric if it is a number; corpus metrics keep texts and tuples there."""
    return float(value) if isinstance(value, bool | int | float | np.number | np.bool_) else None


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _files_digest(folder: Path) -> str:
    """Digest of a task folder: code and YAML by their contents, large files by size."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest(
        [
            (
                str(path.relative_to(folder)),
                path.read_bytes() if path.stat().st_size < WHOLE_FILES else path.stat().st_size,
            )
            for path in paths
        ]
    )
