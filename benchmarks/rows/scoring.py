"""Log-probabilities of answers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import published, worlds
from benchmarks.timing import Row, distance, in_turns
from sea_lens.models.log_probs import score_answers


def truthfulqa_rows() -> Iterator[Row]:
    """The log-probability of every answer to every question after a six-example prompt, as `evaluate_truthfulqa` has them."""
    model = worlds.llama(256, 4)
    questions = worlds.questions(12)
    texts = [(row.prompt, text) for row in questions for text in (*row.right, *row.wrong)]
    scores: dict[str, torch.Tensor] = {}

    def baseline() -> None:
        scores["published"] = torch.tensor(published.score(model, texts), dtype=torch.float64)

    def ours() -> None:
        scores["ours"] = score_answers(model, questions, progress=False).log_probabilities.flatten()

    times = in_turns(baseline, ours, 3, 1)
    apart = distance(scores["ours"], scores["published"])
    what = f"TruthfulQA scoring, six-example prompt, {len(texts)} answers, d=256, 4 layers"
    yield Row(what, *times, 6, f"{apart:.1e} apart", apart < 1e-5, (1, 3))
