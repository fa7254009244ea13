"""Peak memory."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import memory, vocabulary
from benchmarks.timing import Row

KINDS = ("ablate_layers", "evaluate_truthfulqa", "evaluate_perplexity")
"""Effects under many editors; scores, with damage and a control; and whole texts."""


def memory_rows() -> Iterator[Row]:
    """Peak memory of collecting and fitting beyond the model and the texts, for n and 10 n demonstrations."""
    n = 300  # more than the activations that a fitter keeps
    few, many, few_kept, many_kept = memory.of_collect_and_fit(
        [("checked", n), ("streaming", 10 * n), ("in memory", n), ("in memory", 10 * n)]
    )
    assert few.apart is not None
    same = few.ranks == few_kept.ranks
    exactness = f"ranks {few.ranks} {'equal' if same else 'differ'}, edits {few.apart:.1e} apart from those in memory"
    what = f"peak memory of collect + fit beyond the model, n={n} and {10 * n}"
    sizes = few.megabytes, many.megabytes
    yield Row(f"{what}, streaming", *sizes, 1.05, exactness, same and few.apart < 1e-5, unit="MB", inverted=True)
    yield Row(f"{what}, in memory", few_kept.megabytes, many_kept.megabytes, None, "", True, unit="MB", inverted=True)


def vocabulary_rows() -> Iterator[Row]:
    """Peak memory of evaluations beyond the model, at a vocabulary and at one twice as large.

    Of one of each kind; `python -m benchmarks.vocabulary` measures them all.
    """
    for name, (small, large) in vocabulary.peaks(KINDS).items():
        yield Row(
            f"peak memory of {name} beyond the model, {vocabulary.LARGE:,} tokens in the vocabulary",
            small,
            large,
            1.05,
            f"at most {vocabulary.MOST} MB, whatever the vocabulary",
            large <= vocabulary.MOST,
            unit="MB",
            inverted=True,
            against=f"the same texts, {vocabulary.SMALL:,} in the vocabulary",
        )
