"""One edit at one layer only, and at all layers but one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import worlds
from benchmarks.timing import Row, distance, in_turns
from sea_lens import Editor, Question, Questions
from sea_lens.analysis.effects import mean_log_probability_difference
from sea_lens.analysis.layers import Mode, ablate_layers
from sea_lens.models.branching import Unembedding
from sea_lens.models.bridge import Model
from sea_lens.models.hooks import states_at
from sea_lens.models.predictions import question_batches

MODES: tuple[Mode, ...] = ("only", "without")
APART = 1e-5
"""Nats per token: rounding of float32 logits in passes of other shapes."""


def ablation_rows() -> Iterator[Row]:
    """The edit at one layer only, and at all but one: 62 settings of 30 layers, with the whole edit and none."""
    yield _row("ablation only + without, 30 layers, SmolLM2 shape", worlds.smollm2(), 576, 30, 4, 1.9, 1)
    yield _row("the same, 16 layers, d=128, 258 tokens", worlds.llama(128, 16), 128, 16, 24, 1.9, 1)


def _row(what: str, model: Model, width: int, n_layers: int, n: int, wanted: float, repeats: int) -> Row:
    editor, questions = worlds.random_editor(width, n_layers, 8), _questions(n)
    views: list[Editor | None] = [None, editor]
    views += [editor.at_layers([layer]) for layer in range(n_layers)]
    views += [editor.without_layers([layer]) for layer in range(n_layers)]
    batch_size = 8

    def in_full(share_prompts: bool, chosen: list[Editor | None]) -> torch.Tensor:
        found = torch.zeros(len(chosen), len(questions), dtype=torch.float64)
        with torch.no_grad():
            for batch in question_batches(model, questions, batch_size, share_prompts=share_prompts):
                for row, view in enumerate(chosen):
                    states = states_at(model, batch.tokens, batch.where, [] if view is None else view.fwd_hooks())
                    predictions = batch.predictions(states, Unembedding(model))
                    found[row, batch.indices] = mean_log_probability_difference(predictions, predictions)
        return found

    def shared() -> torch.Tensor:
        options = {"modes": MODES, "control": 0, "damage": False, "batch_size": batch_size, "progress": False}
        return torch.tensor(ablate_layers(model, questions, editor, **options).per_question.to_numpy())  # type: ignore[arg-type]

    values: list[torch.Tensor] = [torch.empty(0)] * 2

    def baseline() -> None:
        values[0] = in_full(False, views)

    def ours() -> None:
        values[1] = shared()

    in_full(False, views[:1])  # what a model can do is tried once
    times = in_turns(baseline, ours, repeats)
    apart = distance(values[1].T, values[0])
    some = [0, 1, 2 + n_layers // 2, 2 + n_layers + n_layers // 2]
    same = torch.equal(values[1].T[some], in_full(True, [views[index] for index in some]))
    exactness = f"{apart:.1e} apart; {'equal to the bit' if same else 'NOT equal'} to full runs of the same rows"
    return Row(
        what,
        *times,
        wanted,
        exactness,
        same and apart < APART,
        (repeats, repeats),
        against="one full scoring a setting",
    )


def _questions(n: int) -> Questions:
    """Short questions with a right and a wrong answer."""
    rows = [
        Question(
            prompt=f"Q: Which road leads from the old harbor to town {index}? A:",
            right=(f"Road {index} by the mill.",),
            wrong=(f"No road but {index} leads there.",),
        )
        for index in range(n)
    ]
    return Questions(tuple(rows), "benchmark")
