"""An editor in one of vLLM's workers: what it can take is checked, and its hooks are set on the layers that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sea_lens.editing.editor import Editor
from sea_lens.editing.fits import check_origin, check_sizes, sites_of_edits
from sea_lens.editing.hooks import EditHooks
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.bridge import ModelInfo, plain_name
from sea_lens.models.plain import find_blocks, place_inside
from sea_lens.models.sites import Site
from sea_lens.serving.requests import TrackedHooks, Tracker, needs_prompts
from sea_lens.serving.streams import Act, by_token, hook_input, hook_output

SITES = ("resid_pre", "attn.hook_z", "attn_out", "mlp.hook_post", "mlp_out", "resid_post")
"""The sites that vLLM's models have."""
OF_ONE_RANK = ("attn.hook_z", "mlp.hook_post")
"""Those that tensor parallelism splits over ranks."""


@dataclass(frozen=True, eq=False)
class Installed:
    """An editor's hooks in a worker.

    Attributes:
        here: The sites that lie in this worker.
        fired: By site, whether a token was edited there.
        undo: What takes the hooks off.
    """

    here: frozenset[Site]
    fired: Mapping[Site, bool]
    undo: tuple[Callable[[], None], ...]

    def remove(self) -> None:
        """Takes the hooks off."""
        for each in self.undo:
            each()

    def report(self) -> dict[str, bool]:
        """By name of each site of this worker, whether a token was edited there."""
        return {str(site): fired for site, fired in self.fired.items() if site in self.here}


def install(worker: Any, editor: Editor) -> Installed:
    """Sets an editor's hooks on a worker's part of the model.

    Args:
        worker: vLLM's worker, with its model loaded.
        editor: The editor.

    Raises:
        ModelMismatchError: If the editor does not fit the model, or a site cannot be found in vLLM's build of it.
        InputError: If the engine was made with options that the editor cannot act under.
    """
    config, runner = worker.vllm_config, worker.model_runner
    check_engine(config, editor)
    check_model(config, editor)
    model = runner.get_model()
    blocks = _blocks(model, int(config.model_config.hf_text_config.num_hidden_layers))
    here = frozenset(site for site in editor.edits if not _is_elsewhere(blocks[_layer(site)]))
    undo: list[Callable[[], None]] = []
    try:
        tracker = None
        if editor.where is not None:
            tracker = Tracker(runner, model, needs_prompts(editor.where, editor.edits))
            undo.append(tracker.close)
        hooks = EditHooks(editor, None) if tracker is None else TrackedHooks(editor, tracker)
        for name, hook in hooks.hooks():
            site = Site.of(name)
            block = blocks[_layer(site)]
            if not _is_elsewhere(block):
                undo.append(_hook(block, site, by_token(hook, hooks.passes), config))
    except BaseException:
        for each in undo:
            each()
        raise
    return Installed(here, hooks.fired, tuple(undo))


def check_engine(config: Any, editor: Editor) -> None:
    """Checks that an engine's options let an editor act.

    Args:
        config: vLLM's whole configuration.
        editor: The editor.

    Raises:
        InputError: If they do not; with the option that does.
    """
    compilation, parallel = config.compilation_config, config.parallel_config
    if compilation.mode or compilation.cudagraph_mode:
        raise InputError(
            "This engine compiles the model or replays CUDA graphs, where hooks do not run, so an editor would do nothing. "
            "Make it with LLM(..., enforce_eager=True)."
        )
    if config.kv_transfer_config is not None:
        raise InputError(
            "This engine takes keys and values from elsewhere (kv_transfer_config), and those may be of the unedited model. "
            "Make it without."
        )
    where = editor.where
    mixing = [str(site) for site, edit in editor.edits.items() if not edit.token_local]
    if mixing:
        raise InputError(
            f"The edit at {mixing[0]} looks at all tokens of a pass together, and a pass of vLLM holds parts of many "
            "requests. Run the model with Hugging Face: with editor.attached(model)."
        )
    if where is None:
        return
    if getattr(where, "of_one_batch", False):
        raise InputError(
            "A position mask is for one batch of prompts, and vLLM makes batches of its own. Choose positions that hold for "
            "every request, such as 'generated' or [-1]."
        )
    kinds = {
        "micro-batches (enable_dbo)": bool(parallel.use_ubatching),
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "kv_sharing_fast_prefill": bool(config.cache_config.kv_sharing_fast_prefill),
        "positions in three dimensions (M-RoPE)": bool(config.model_config.uses_mrope),
    }
    found = [name for name, there in kinds.items() if there]
    if found:
        raise InputError(
            f"Under {found[0]} it is not known here where a token stands, so {where} cannot be told. "
            "Use editor.at_positions('all'), or an engine without."
        )
    if not needs_prompts(where, editor.edits):
        return
    if config.cache_config.enable_prefix_caching:
        raise InputError(
            f"This editor edits {where}, and prefix caching gives one request the cache of another, where the same token may "
            "have been edited otherwise. Make the engine with LLM(..., enable_prefix_caching=False)."
        )
    if config.speculative_config is not None:
        raise InputError(
            f"This editor edits {where}, which is not tested under speculative decoding. Make the engine without."
        )
    if where.reads is not None and (
        config.scheduler_config.enable_chunked_prefill or parallel.pipeline_parallel_size > 1
    ):
        raise InputError(
            f"This editor edits texts {where}, so it must see a prompt whole, before its first layer is edited. Make the "
            "engine with LLM(..., enable_chunked_prefill=False) and one pipeline stage."
        )


def check_model(config: Any, editor: Editor) -> None:
    """Checks that an editor fits a model, as far as its configuration tells.

    Args:
        config: vLLM's whole configuration.
        editor: The editor.

    Raises:
        ModelMismatchError: If it does not, or vLLM's models have no such site.
    """
    text = config.model_config.hf_text_config
    theirs = ModelInfo(
        plain_name(str(config.model_config.model)), int(text.num_hidden_layers), int(text.hidden_size), "raw"
    )
    check_sizes(editor.edits, theirs)
    if editor.card.model is not None:
        check_origin(editor.card.model, theirs)
    for site in sites_of_edits(editor.edits, editor.where):
        _check_site(site, config.parallel_config.tensor_parallel_size)


def _blocks(model: nn.Module, n_layers: int) -> nn.ModuleList:
    language: nn.Module = model.get_language_model() if hasattr(model, "get_language_model") else model  # type: ignore[operator]
    found = find_blocks(language, n_layers)
    if found is None:
        raise ModelMismatchError(
            f"The layers of vLLM's {type(model).__name__} cannot be found: no list of {n_layers} modules is in it."
        )
    return found[1]


def _layer(site: Site) -> int:
    assert site.layer is not None
    return site.layer


def _is_elsewhere(block: nn.Module) -> bool:
    """Whether a layer lies in another stage of the pipeline."""
    return type(block).__name__ == "PPMissingLayer"


def _check_site(site: Site, ranks: int) -> None:
    if site.layer is None or site.name not in SITES:
        raise ModelMismatchError(
            f"On vLLM no module stands for {site}; sites that can be edited are {', '.join(SITES)}. Run the model with "
            "Hugging Face for the others: with editor.attached(model)."
        )
    if site.name in OF_ONE_RANK and ranks > 1:
        raise ModelMismatchError(
            f"{site} is split over {ranks} tensor-parallel ranks, and an edit needs it whole. Serve with "
            "tensor_parallel_size=1, over pipeline stages if it must be several GPUs."
        )


def _hook(block: nn.Module, site: Site, act: Act, config: Any) -> Callable[[], None]:
    if str(config.model_config.dtype) == "torch.float16" and hasattr(block, "routed_scaling_factor"):
        raise ModelMismatchError(
            f"vLLM's {type(block).__name__} shrinks the residual stream in float16. Serve it with dtype='bfloat16'."
        )
    if site.name == "resid_post":
        return hook_output(block, act).remove
    if site.name == "resid_pre":
        return hook_input(block, act).remove
    place = place_inside(block, site.name)
    if place is None:
        raise ModelMismatchError(
            f"In vLLM's {type(block).__name__} no module stands for {site}. Run the model with Hugging Face: "
            "with editor.attached(model)."
        )
    if config.parallel_config.tensor_parallel_size > 1 and not _is_whole(block, site):
        raise ModelMismatchError(
            f"It cannot be told that {site} is whole on every tensor-parallel rank of a {type(block).__name__}, so it is not "
            "edited. Serve with tensor_parallel_size=1, or edit resid_post."
        )
    return place.hook(lambda tensor, hook: act(tensor)).remove


def _is_whole(block: nn.Module, site: Site) -> bool:
    """Whether the sum over ranks is made inside a part, so that every rank has all of what it adds."""
    last = place_inside(block, "attn.hook_z" if site.name == "attn_out" else "mlp.hook_post")
    return last is not None and getattr(last.module, "reduce_results", False) is True
