"""Putting an edit on a model and taking it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn

from benchmarks import worlds
from benchmarks.timing import Row, in_turns
from sea_lens.errors import HookNeverFiredError

REPEATS = 201
LAYERS, WIDTH = 30, 576


def attach_rows() -> Iterator[Row]:
    """At 30 layers, beside torch's own hooks on as many, which no way can do without, and beside peers where they are."""
    hf_model, model = worlds.hf_smollm2(), worlds.smollm2()
    editor = worlds.random_editor(WIDTH, LAYERS, 16)

    def ours() -> None:
        # It says so when no pass ran inside, which costs a little and is counted.
        with suppress(HookNeverFiredError), editor.attached(model):
            pass

    ours()
    for against, wanted, theirs in _others(hf_model):
        theirs()
        times = in_turns(theirs, ours, REPEATS)
        what = f"attach + detach, {LAYERS} layers, SmolLM2 shape"
        yield Row(what, *times, wanted, "", True, (REPEATS, REPEATS), against=against)


def _others(hf_model: nn.Module) -> Iterator[tuple[str, float | None, Callable[[], None]]]:
    layers = list(hf_model.model.layers)  # type: ignore[union-attr, arg-type]

    def hooks_alone() -> None:
        handles = [layer.register_forward_hook(lambda module, args, output: None) for layer in layers]
        for handle in handles:
            handle.remove()

    yield "30 torch hooks, nothing checked", None, hooks_alone
    vectors = {layer: torch.ones(WIDTH) for layer in range(LAYERS)}
    if find_spec("steering_vectors") is not None:
        from steering_vectors import SteeringVector

        vector = SteeringVector(layer_activations=vectors, layer_type="decoder_block")

        def steering_vectors() -> None:
            with vector.apply(hf_model):
                pass

        yield "steering-vectors", 1.0, steering_vectors
    if find_spec("repeng") is not None:
        import numpy

        vars(numpy).setdefault("float_", numpy.float64)  # repeng 0.4.0 names what NumPy 2 no longer has
        from repeng import ControlModel, ControlVector

        control = ControlVector("llama", {layer: vector.numpy() for layer, vector in vectors.items()})
        controlled = ControlModel(hf_model, list(range(LAYERS)))

        def repeng() -> None:
            controlled.set_control(control)
            controlled.reset()

        yield "repeng", 1.0, repeng
    if find_spec("pyvene") is not None:
        import pyvene

        intervention = partial(pyvene.AdditionIntervention, embed_dim=WIDTH)
        places = [
            {"layer": layer, "component": "block_output", "intervention": intervention(source_representation=vector)}
            for layer, vector in vectors.items()
        ]
        intervenable = pyvene.IntervenableModel(places, model=hf_model)
        base = {"input_ids": torch.ones(1, 1, dtype=torch.long)}

        def pyvene_forward() -> None:
            # It sets and removes its hooks in every pass, here in one through a model that does nothing.
            vars(hf_model)["forward"] = lambda **options: None
            try:
                intervenable(base)
            finally:
                del vars(hf_model)["forward"]

        yield "pyvene, around an empty pass", 1.0, pyvene_forward
