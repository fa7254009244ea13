"""Editing a vLLM engine in Python: `serving.attach(llm, editor)`."""

from __future__ import annotations

import inspect
import time
import uuid
import warnings
from types import TracebackType
from typing import Any

from sea_lens.editing.editor import Editor
from sea_lens.editing.hooks import check_fired
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.no_model import named
from sea_lens.models.sites import Site
from sea_lens.serving.plugin import ATTACH, DETACH, register

TRIES, WAIT = 20, 0.1
"""How often, and after how many seconds each, a running engine is asked to forget its prefixes."""
STALE = "vLLM keeps its prefix cache, so prompts that begin as earlier ones would be answered partly by the model as it was."
KINDS = {kind.__name__: kind for kind in (InputError, ModelMismatchError, FileFormatError)}


class Attachment:
    """An editor on a vLLM engine, until `detach()` or the end of a `with` block.

    Attributes:
        llm: The engine.
        editor: The editor.
        is_attached: Whether it edits.
    """

    def __init__(self, llm: Any, editor: Editor) -> None:
        """See `attach`, which makes it."""
        self.llm, self.editor, self.is_attached = llm, editor, False
        self._key = uuid.uuid4().hex
        self._attach()

    def detach(self) -> None:
        """Takes the editor off, if it is still on, and says where it has edited nothing.

        Raises:
            HookNeverFiredError: If nothing was edited.
        """
        fired = self._detach()
        if fired is not None:
            check_fired(fired, self.editor.where, stacklevel=3)

    def __enter__(self) -> Any:
        return self.llm

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.detach()
        else:
            self._detach()

    def __repr__(self) -> str:
        return f"Attachment({'on' if self.is_attached else 'off'})\n{self.editor!r}"

    def _attach(self) -> None:
        from sea_lens.serving.workers import files_of

        register()  # for workers in this process; the others have it from vLLM's plugins
        try:
            answers = self.llm.collective_rpc(ATTACH, args=(self._key, files_of(self.editor)))
        except Exception as error:
            if ATTACH in str(error):
                raise InputError(
                    "vLLM's workers do not know sea_lens. Install it where vLLM is (pip install sea-lens), and leave it in "
                    "VLLM_PLUGINS where that is set; or make the engine with VLLM_ENABLE_V1_MULTIPROCESSING=0."
                ) from error
            raise
        self.is_attached = True
        wrong = next((answer for answer in answers if answer["error"]), None)
        if wrong is not None:
            self._detach()
            raise KINDS[wrong["kind"]](wrong["error"])
        found = {site for answer in answers for site in answer["sites"]}
        missing = [str(site) for site in self.editor.sites if str(site) not in found]
        if missing:
            self._detach()
            raise ModelMismatchError(f"No worker of this engine has {', '.join(missing)}.")
        if not self._forget_prefixes():
            self._detach()
            raise InputError(f"{STALE} Attach while no request is running.")

    def _detach(self) -> dict[Site, bool] | None:
        if not self.is_attached:
            return None
        self.is_attached = False
        answers = self.llm.collective_rpc(DETACH, args=(self._key,))
        if not self._forget_prefixes():
            warnings.warn(f"{STALE} Detach while no request is running.", SeaLensWarning, stacklevel=4)
        return {site: any(answer.get(str(site), False) for answer in answers) for site in self.editor.sites}

    def _forget_prefixes(self) -> bool:
        """Forgets what is cached of earlier prompts, for another model made it. Whether that was possible."""
        engine = self.llm.llm_engine
        if not engine.vllm_config.cache_config.enable_prefix_caching:
            return True
        for _ in range(TRIES):
            if self.llm.reset_prefix_cache():
                return True
            # The step after the last one of a finished request may be under way, and holds its blocks.
            if hasattr(engine.engine_core, "engine_core"):
                engine.step()
            else:
                time.sleep(WAIT)
        return False


def attach(llm: Any, editor: Editor) -> Attachment:
    """Edits everything that a vLLM engine runs, on all its workers, until the `with` block ends or `detach()` is called.

    Positions are true ones under continuous batching and chunked prefill, and under prefix caching where they count from the
    beginning. An editor that must know where the prompt ends ("prompt", "generated", negative positions, conditions on the
    prompt) needs an engine without prefix caching.

    Example:
        >>> llm = vllm.LLM("folder/of/the/model", enforce_eager=True)  # doctest: +SKIP
        >>> with sl.serving.attach(llm, editor):  # doctest: +SKIP
        ...     llm.chat([{"role": "user", "content": "Where were fortune cookies invented?"}])
        >>> handle = sl.serving.attach(llm, editor.scaled(0.5))  # in a notebook, over several cells  # doctest: +SKIP
        >>> handle.detach()  # doctest: +SKIP

    Args:
        llm: A `vllm.LLM`, made with `enforce_eager=True`: compiled models and CUDA graphs run no hooks.
        editor: The editor.

    Returns:
        A handle that is on already. As a context it gives the same `llm`.

    Raises:
        ModelMismatchError: If the editor does not fit the model, or a site cannot be found in vLLM's build of it.
        InputError: If the engine was made with options under which the editor cannot act; the message says which.
        HookNeverFiredError: On leaving, if no token was edited.

    Warns:
        SeaLensWarning: On leaving, if some sites were never reached, or requests still run and vLLM keeps its prefix cache.
    """
    rpc = None if isinstance(llm, type) else getattr(llm, "collective_rpc", None)
    if not callable(rpc) or inspect.iscoroutinefunction(rpc) or not hasattr(llm, "llm_engine"):
        how = "A Hugging Face model or a bridge is edited by editor.attached(model)."
        if callable(rpc):
            how = "Another engine serves an editor that SEA_LENS_EDITOR names; or make a vllm.LLM."
        elif isinstance(llm, type | str):
            how = 'Make one: vllm.LLM("folder/of/the/model", enforce_eager=True).'
        raise InputError(f"A vllm.LLM is needed, and {named(llm)} was given. {how}")
    if not isinstance(editor, Editor):
        raise InputError(
            f"An Editor is needed, and {named(editor)} was given. Editor.from_pretrained(folder) reads one, and a method's "
            "fit(activations) makes one."
        )
    return Attachment(llm, editor)
