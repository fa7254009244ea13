"""The tasks of EleutherAI's lm-evaluation-harness on an edited model, run by the harness itself.

lm-eval's own `HFLM` is handed the Hugging Face model that the bridge wraps, under the editor's hooks. So prompts, answer
extraction and metrics are lm-eval's, and its numbers those that the field reports. Needs `pip install "sea-lens[eval]"`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from sea_lens.cache import JSON, fingerprint, write_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.evaluation.evaluation import Evaluation, check_unhooked, provenance
from sea_lens.evaluation.lm_eval_results import TaskResults, read_results, sample_table, score_scales, score_table
from sea_lens.models.bridge import Model, tokenizer_of, weights_digest

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
"""What is needed of that which lm-eval returns."""


def evaluate_lm_eval(
    model: Model,
    editor: Editor | None = None,
    tasks: Sequence[str] = (),
    *,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    batch_size: int = 8,
    task_folder: str | Path | None = None,
    model_options: Mapping[str, JSON] | None = None,
    options: Mapping[str, JSON] | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool = True,
) -> Evaluation:
    """Runs tasks of lm-eval on the model, and with an editor on the edited model too.

    A metric that is a mean over samples (accuracy, exact match) gets a paired bootstrap interval over lm-eval's own samples,
    and a p-value; of another (corpus BLEU, perplexity) only lm-eval's standard errors are known. Column `interval` says
    which.
    Groups such as `mmlu` come with their tasks; their samples are pooled where lm-eval weights tasks by size.

    The tokenizer is the bridge's, which puts the beginning-of-sequence token before a text where TransformerLens says that
    the model wants one; `model_options={"add_bos_token": False}` changes that. Generated answers are padded on the left, so
    an editor `at_positions` needs a batch size of 1 there: its positions count padding.

    Args:
        model: A TransformerBridge with a tokenizer, unedited. It is left as it was.
        editor: To compare the unedited model with; None for the unedited model alone.
        tasks: Names of lm-eval's tasks and groups, or of those in `task_folder`.
        num_fewshot: Worked examples in each prompt; None for each task's own number.
        limit: Samples a task, or a share of them below 1. For trying out: lm-eval takes the first ones.
        batch_size: Texts in one forward pass.
        task_folder: A folder of task files (YAML) of your own; lm-eval's `include_path`.
        model_options: Further keywords of `lm_eval.models.huggingface.HFLM`, such as `max_length`.
        options: Further keywords of `lm_eval.simple_evaluate`, such as `apply_chat_template`.
        folder: Where to keep finished tasks. A run that was killed goes on there, and one with another editor finds the
            unedited model's results there.
        seed: Of resamples. lm-eval's own seeds are set by `options`.
        confidence: Of the intervals.
        progress: Whether lm-eval shows its progress bars while the model runs.

    Returns:
        Rows of `table` are named by task, metric and filter; `per_row` has one row a sample and filter.

    Raises:
        InputError: If lm-eval is not installed, a task is unknown, or both runs did not see the same samples.
        ModelMismatchError: If the model wraps no Hugging Face model, or the editor does not fit it.
        HookNeverFiredError: If lm-eval's passes did not reach the editor.
    """
    began = time.monotonic()
    if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks):
        raise InputError(f"Give a list of different lm-eval tasks, such as ['hellaswag', 'mmlu']; {tasks!r} was given.")
    if batch_size < 1 or not 0 < confidence < 1 or (limit is not None and limit <= 0):
        raise InputError(
            f"batch_size must be at least 1, confidence inside (0, 1) and limit above 0; {batch_size}, {confidence} and "
            f"{limit} were given."
        )
    lm_eval = _lm_eval()
    if getattr(model, "original_model", None) is None:
        raise ModelMismatchError(
            "lm-eval runs a Hugging Face model, and this model wraps none. Boot it with TransformerBridge.boot_transformers."
        )
    check_unhooked(model, folder)
    if editor is not None:
        editor.check(model)
        if not editor.token_local:
            batch_size = 1  # what it does to a token depends on the pass, padding included
    asked: dict[str, JSON] = {
        "num_fewshot": num_fewshot,
        "limit": limit,
        "batch_size": batch_size,
        "model_options": dict(model_options or {}),
        "options": dict(options or {}),
        "task_files": None if task_folder is None else _files_fingerprint(Path(task_folder)),
    }
    manager = None
    runs: list[dict[str, TaskResults]] = []
    for edit in (None,) if editor is None else (None, editor):
        found: dict[str, TaskResults] = {}
        for task in tasks:
            made_by = {
                "lm_eval": lm_eval.__version__,
                "weights": weights_digest(model),
                "editor": None if edit is None else edit.fingerprint,
                "task": task,
                **asked,
            }
            kept = None if folder is None else _kept(Path(folder), task, made_by)
            known = None if kept is None else _load(kept)
            if known is None:
                manager = manager or _task_manager(tasks, task_folder)
                known = _run(model, edit, task, asked, manager, progress)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    write_text(kept, json.dumps(known))
            found[task] = read_results(known)
        runs.append(found)
    table = score_table(runs, seed, confidence)
    per_row = sample_table(runs)
    first = list(runs[0].values())
    return Evaluation(
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
                fingerprint=fingerprint([str(value) for value in per_row["doc_hash"]]),
                n=len(per_row),
                prompt="lm-eval's, by task",
                options={**asked, "tasks": list(tasks), "seed": seed, "confidence": confidence},
                seconds=time.monotonic() - began,
                packages=("lm-eval", "datasets"),
            ),
            "tasks": {name: facts for results in first for name, facts in results.facts.items()},
        },
        scales=score_scales(runs[0]),
    )


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
    """The tasks that lm-eval knows; its own thousands are read (in 20 seconds) only if the folder has not all of them."""
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
    model: Model,
    editor: Editor | None,
    task: str,
    asked: Mapping[str, JSON],
    manager: Any,
    progress: bool,
) -> dict[str, JSON]:
    """One task on one model: what lm-eval returns, as far as it is needed, as plain values."""
    lm_eval = _lm_eval()
    hf_model = model.original_model
    with left_as_it_was(hf_model):
        log = logging.getLogger("lm_eval")
        level = log.level
        log.setLevel(logging.ERROR)  # it warns that it was given a model and not a name
        try:
            harness = lm_eval.models.huggingface.HFLM(
                pretrained=hf_model,
                tokenizer=copy.deepcopy(tokenizer_of(model)),  # it chooses a padding token and side
                backend="causal",
                batch_size=asked["batch_size"],
                **cast(dict[str, Any], asked["model_options"]),
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
                **cast(dict[str, Any], asked["options"]),
            )
    for samples in results["samples"].values():
        for sample in samples:
            metrics = {name: _number(sample[name]) for name in sample["metrics"]}
            kept = {name: sample[name] for name in ("doc_id", "doc_hash", "filter", "target", "filtered_resps")}
            sample.clear()
            sample.update(kept, metrics=metrics)
    plain: dict[str, JSON] = json.loads(json.dumps({name: results.get(name) or {} for name in KEPT}, default=_plain))
    return plain


@contextmanager
def left_as_it_was(hf_model: torch.nn.Module) -> Iterator[None]:
    """Undoes what lm-eval does to a model and to the random numbers of this process."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    modes = {module: module.training for module in hf_model.modules()}
    generation = copy.deepcopy(getattr(hf_model, "generation_config", None))
    # HFLM ties input and output embeddings again, which processed weights are not to be.
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
    """A sample's metric where it is a number; corpus metrics keep texts and tuples there."""
    return float(value) if isinstance(value, bool | int | float | np.number | np.bool_) else None


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _files_fingerprint(folder: Path) -> str:
    """Of all that stands in a task folder: code and YAML by their contents, the rest by size."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        small = path.suffix in (".yaml", ".yml", ".py") or path.stat().st_size < 2**24
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
        digest.update(path.read_bytes() if small else b"")
    return digest.hexdigest()[:16]


def _kept(folder: Path, task: str, made_by: Mapping[str, object]) -> Path:
    name = "unedited" if made_by["editor"] is None else "edited"
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', task)}-{name}-{fingerprint(made_by)}.json"


def _load(path: Path) -> dict[str, JSON] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # missing or damaged, and so to be done again
    return found if isinstance(found, dict) else None
