"""The plugin that vLLM loads in each of its processes: `SEA_LENS_EDITOR=folder vllm serve MODEL` serves the edited model.

An engine's configuration carries the editor's name and fingerprint to all its workers, those on other nodes included. Every
worker installs it on its own layers, and the engine does not start unless every edited layer is found.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sea_lens.errors import InputError, ModelMismatchError

VARIABLE = "SEA_LENS_EDITOR"
"""The environment variable that names the editor to serve."""
KEY = "sea_lens"
"""Where the editor stands in vLLM's `additional_config`."""
ATTACH, DETACH, REPORT = "sea_lens_attach", "sea_lens_detach", "sea_lens_report"
"""What the methods of vLLM's workers are called."""

logger = logging.getLogger("vllm.sea_lens")


def register() -> None:
    """Teaches vLLM's classes, in the process that calls it, to edit. Doing so twice changes nothing."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.worker.worker_base import WorkerBase, WorkerWrapperBase

    if hasattr(WorkerBase, ATTACH):
        return
    setattr(WorkerBase, ATTACH, _attach)
    setattr(WorkerBase, DETACH, _detach)
    setattr(WorkerBase, REPORT, _report)
    WorkerWrapperBase.load_model = _load_model
    EngineArgs.create_engine_config = _configured(EngineArgs.create_engine_config)
    Executor.initialize_from_config = _checked(Executor.initialize_from_config)


def _attach(worker: Any, key: str, files: dict[str, bytes]) -> dict[str, Any]:
    from sea_lens.serving.workers import attach_to_worker

    return attach_to_worker(worker, key, files)


def _detach(worker: Any, key: str) -> dict[str, bool]:
    from sea_lens.serving.workers import detach_from_worker

    return detach_from_worker(worker, key)


def _report(worker: Any) -> dict[str, Any]:
    """What a worker serves, and the sites that lie in it."""
    from sea_lens.serving.workers import install_served

    served = _served(worker.vllm_config)
    if served is None:
        return {"fingerprint": None, "sites": []}
    sites = install_served(worker, served["editor"], served["fingerprint"])
    return {"fingerprint": served["fingerprint"], "sites": sites}


def _load_model(wrapper: Any, **options: Any) -> Any:
    """Loads a worker's model, then installs the editor, before vLLM measures what memory is left."""
    loaded = wrapper.worker.load_model(**options)
    served = _served(wrapper.worker.vllm_config)
    if served is not None:
        sites = _report(wrapper.worker)["sites"]
        logger.info(
            "sea_lens edits %s here, by %s (%s).",
            ", ".join(sites) or "no layer",
            served["editor"],
            served["fingerprint"],
        )
    return loaded


def _configured(create: Callable[..., Any]) -> Callable[..., Any]:
    """Making an engine's configuration, with the editor in it and what it cannot act under left out."""

    def create_engine_config(args: Any, *given: Any, **options: Any) -> Any:
        name = os.environ.get(VARIABLE)
        if not name:
            return create(args, *given, **options)
        from sea_lens import Editor
        from sea_lens.serving.installing import check_engine, check_model
        from sea_lens.serving.requests import needs_prompts

        if Path(name).is_dir():
            name = str(Path(name).resolve())
        editor = Editor.from_pretrained(name)
        wanted: dict[str, object] = {"enforce_eager": True}
        if needs_prompts(editor.where, editor.edits):
            wanted["enable_prefix_caching"] = False
        if editor.where is not None and editor.where.reads is not None:
            wanted["enable_chunked_prefill"] = False
        for option, value in wanted.items():
            if getattr(args, option) is not value:
                setattr(args, option, value)
                logger.warning("sea_lens sets %s=%s, for the editor in %s cannot act otherwise.", option, value, name)
        if not isinstance(args.additional_config, dict):
            raise InputError("sea_lens keeps the editor in vLLM's additional_config, which must be a dictionary.")
        args.additional_config = {
            **args.additional_config,
            KEY: {"editor": name, "fingerprint": editor.fingerprint, "sites": [str(site) for site in editor.sites]},
        }
        config = create(args, *given, **options)
        check_engine(config, editor)
        check_model(config, editor)
        return config

    return create_engine_config


def _checked(initialize: Callable[..., Any]) -> Callable[..., Any]:
    """Starting an engine, unless an edited layer is in no worker."""

    def initialize_from_config(executor: Any, *given: Any, **options: Any) -> Any:
        done = initialize(executor, *given, **options)
        served = _served(executor.vllm_config)
        if served is not None:
            reports = executor.collective_rpc(REPORT)
            if any(report["fingerprint"] != served["fingerprint"] for report in reports):
                raise InputError(
                    f"A worker of this engine serves no editor, or another than {served['editor']}. Set {VARIABLE} alike on "
                    "every node that is started by hand."
                )
            found = {site for report in reports for site in report["sites"]}
            missing = [site for site in served["sites"] if site not in found]
            if missing:
                raise ModelMismatchError(
                    f"No worker of this engine has {', '.join(missing)}, which {served['editor']} edits."
                )
        return done

    return initialize_from_config


def _served(config: Any) -> dict[str, Any] | None:
    """What an engine serves, by its configuration."""
    found = config.additional_config
    served: dict[str, Any] | None = found.get(KEY) if isinstance(found, dict) else None
    return served
