"""One edit at one layer only, and at all layers but one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import worlds
from benchmarks.timing import Row, distance, in_turns
from sea_lens import Editor
from sea_lens.analysis.effects import log_probability_difference
from sea_lens.analysis.layers import Mode, ablate_layers
from sea_lens.models.hooks import logits_at
from sea_lens.models.predictions import question_batches


def ablation_rows() -> Iterator[Row]:
    """The edit at one layer only, and at all but one: 34 settings with the whole edit and none."""
    n_layers = 16
    model, editor = worlds.llama(128, n_layers), worlds.random_editor(128, n_layers, 8)
    questions = worlds.questions(24, answers=2, prefix="")
    views: list[Editor | None] = [None, editor]
    views += [editor.at_layers([layer]) for layer in range(n_layers)]
    views += [editor.without_layers([layer]) for layer in range(n_layers)]
    values: list[torch.Tensor] = [torch.empty(0)]
    batch_size = 8
    modes: tuple[Mode, ...] = ("only", "without")

    @torch.no_grad()
    def baseline() -> None:
        values[0] = torch.zeros(len(views), len(questions), dtype=torch.float64)
        for batch in question_batches(model, questions, batch_size):
            for row, view in enumerate(views):
                with model.hooks(fwd_hooks=[] if view is None else view.fwd_hooks()):
                    predictions = batch.predictions(logits_at(model, batch.tokens, batch.where))
                values[0][row, batch.indices] = log_probability_difference(predictions, predictions)

    def ours() -> None:
        values[1:] = [
            torch.tensor(
                ablate_layers(
                    model,
                    questions,
                    editor,
                    modes=modes,
                    effect="log_probability_difference",
                    control=0,
                    damage=False,
                    batch_size=batch_size,
                    progress=False,
                ).per_question.to_numpy()
            )
        ]

    times = in_turns(baseline, ours, 3)
    apart = distance(values[1].T, values[0])
    yield Row(
        f"ablation only + without, {n_layers} layers, d=128", *times, 1.8, f"{apart:.1e} apart", apart == 0, (3, 3)
    )
