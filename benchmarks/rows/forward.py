"""An editor at every layer, in the forward pass of a whole model: as it is, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from transformer_lens.model_bridge import TransformerBridge

from benchmarks import published, worlds
from benchmarks.rows.edits import dense
from benchmarks.timing import Row, distance, seconds
from sea_lens import Editor
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.hooks import EditHooks
from sea_lens.editing.sparing import NotMassive
from sea_lens.models.bridge import FwdHook
from sea_lens.models.sites import Site
from sea_lens.models.unwrapped import forward

WIDTH, LAYERS, RANK = 576, 30, 16
REPEATS = {1: 101, 64: 7, 256: 2}
COMPILED_LAYERS, COMPILED_REPEATS = 4, 25


def forward_rows() -> Iterator[Row]:
    """Every layer of SmolLM2's shape edited, against the same model unedited; equal to dense projections at every layer.

    Fitted editors spare massive tokens, so they look at the norm of every token at every layer. (Sparing first tokens as well
    would leave nothing to edit in a pass over one.)
    """
    model = worlds.smollm2()
    everywhere = worlds.random_editor(WIDTH, LAYERS, RANK)
    editors = {"every token edited": everywhere, "all but massive tokens edited": _sparing(everywhere, False)}
    for batch, length in ((1, 1), (4, 64), (8, 256)):
        ids = torch.randint(3, 4000, (batch, length), generator=torch.Generator().manual_seed(0))
        ways: list[tuple[str, Callable[[], Tensor]]] = [("", partial(_forward, model, ids))]
        if length == 1:
            ways.append((", without idle wrappers", partial(_unwrapped, model, ids)))
        with model.hooks(fwd_hooks=_dense_hooks(everywhere)):
            wanted = ways[0][1]()
        for name, run in ways:
            setups = [nullcontext, *(partial(editor.attached, model) for editor in editors.values())]
            apart = []
            for setup in setups[1:]:
                with setup():
                    apart.append(distance(run(), wanted))
            times = _medians(partial(_with, setups, run), len(setups), REPEATS[length])
            for what, ours, far in zip(editors, times[1:], apart, strict=True):
                title = f"forward, SmolLM2 shape, rank {2 * RANK} at {LAYERS} layers, {what}, ({batch}, {length}){name}"
                yield _row(
                    title, times[0], ours, 1.05, f"{far:.1e} from dense projections", far < 1e-4, REPEATS[length]
                )
    yield from _compiled_rows()


def _compiled_rows() -> Iterator[Row]:
    """Some of the blocks alone, for the unembedding is a share of a pass that hides what an edit costs.

    They are a plain Hugging Face model's, which calls the editor's hooks: TransformerLens's bridge breaks the graph at every
    block, edited or not.
    """
    title = f"compiled forward, {COMPILED_LAYERS} blocks of SmolLM2's shape, rank {2 * RANK}, (4, 64)"
    try:
        compiler = get_cpp_compiler()
    except RuntimeError:  # torch's error where it finds none
        yield Row(
            title, float("nan"), float("nan"), None, "not run: there is no C++ compiler", True, against="unedited"
        )
        return
    everywhere = worlds.random_editor(WIDTH, COMPILED_LAYERS, RANK)
    editors = {"every token": everywhere, "all but first and massive tokens": _sparing(everywhere, True)}
    ids = torch.randint(3, 4000, (4, 64), generator=torch.Generator().manual_seed(0))
    settings = torch._dynamo.config
    before, settings.skip_nnmodule_hook_guards = settings.skip_nnmodule_hook_guards, False  # or all share one graph
    runs, breaks, far = [], [], []
    try:
        for editor in (None, *editors.values()):
            torch._dynamo.reset()
            run = _blocks(editor)
            with torch.no_grad():
                found = torch._dynamo.explain(run)(ids)
                breaks.append(found.graph_break_count)
                far.append(run(ids))
            runs.append(run)
        torch._dynamo.reset()
        compiled = [partial(_in_graph, torch.compile(run, dynamic=False), ids) for run in runs]
        for index, one in enumerate(compiled):
            far[index] = distance(one(), far[index])
        times = _medians(lambda index: seconds(compiled[index]), len(compiled), COMPILED_REPEATS)
    finally:
        settings.skip_nnmodule_hook_guards = before
        torch._dynamo.reset()
    for index, what in enumerate(editors, start=1):
        exactness = (
            f"{far[index]:.1e} from uncompiled; graph breaks: {breaks[index]} ({breaks[0]} unedited); {compiler}"
        )
        exact = far[index] < 1e-4 and not breaks[index]
        yield _row(f"{title}, {what}", times[0], times[index], 1.02, exactness, exact, COMPILED_REPEATS)


def _row(what: str, unedited: float, edited: float, wanted: float, exactness: str, exact: bool, repeats: int) -> Row:
    return Row(
        what, unedited, edited, wanted, exactness, exact, (repeats, repeats), inverted=True, against="the same unedited"
    )


def _medians(run: Callable[[int], float], n: int, repeats: int) -> list[float]:
    """Median time of each of `n` ways of running, in turns and changing order."""
    times: list[list[float]] = [[] for _ in range(n)]
    for turn in range(repeats):
        for index in range(n) if turn % 2 == 0 else reversed(range(n)):
            times[index].append(run(index))
    return [median(each) for each in times]


def _with(
    setups: Sequence[Callable[[], AbstractContextManager[object]]], run: Callable[[], object], index: int
) -> float:
    """Time of a pass. Hooks are set outside of it, once for many passes, as in use."""
    with setups[index]():
        return seconds(run)


def _sparing(editor: Editor, first: bool) -> Editor:
    return replace(editor, where=NotMassive(first, tuple((site.hook_name, 1e4) for site in editor.sites)))


def _blocks(editor: Editor | None) -> Callable[[Tensor], Tensor]:
    """Blocks of a plain model with an editor's hooks."""
    model = worlds.hf_smollm2(n_layers=COMPILED_LAYERS).model
    assert isinstance(model, nn.Module)
    for layer, (_, hook) in zip(model.layers, [] if editor is None else EditHooks(editor).hooks(), strict=False):  # type: ignore[call-overload, arg-type]
        layer.register_forward_hook(lambda module, args, output, hook=hook: hook(output, hook=None))

    def run(ids: Tensor) -> Tensor:
        states: Tensor = model(ids, use_cache=False).last_hidden_state
        return states

    return run


@torch.no_grad()
def _in_graph(compiled: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    return compiled(ids)


def _dense_hooks(editor: Editor) -> list[FwdHook]:
    hooks: list[FwdHook] = []
    for layer in editor.layers:
        edit = editor[layer]
        assert isinstance(edit, AffineEdit)
        hooks.append((Site(layer).hook_name, partial(_dense_hook, dense(edit))))
    return hooks


def _dense_hook(projections: tuple[Tensor, Tensor], tensor: Tensor, hook: object) -> Tensor:
    return published.edit(tensor, *projections)


@torch.no_grad()
def _forward(model: TransformerBridge, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, use_cache=False)
    return logits


@torch.no_grad()
def _unwrapped(model: TransformerBridge, ids: Tensor) -> Tensor:
    return forward(model, ids, use_cache=False)
