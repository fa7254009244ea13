"""Jobs of several passes that share blocks give what separate jobs give, to the bit."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import N_LAYERS, build_bridge, make_editor

import sea_lens as sl
from sea_lens import SeaLensWarning
from sea_lens.models import branching_jobs
from sea_lens.models.branching import BranchingRuns
from sea_lens.models.branching_jobs import branched
from sea_lens.models.log_probs import score_answers

QUESTIONS = sl.Questions.from_lists(
    ["Q: What is red? A: Roses. Q: Ada? A:", "Q: What is red? A: Roses. Q: Zeno? A:"],
    [["A poet.", "A cook."], ["He runs."]],
    [["A cat.", "A poem."], ["He runs off."]],
)
"""They share a beginning of more than 16 tokens, which is run once: three kinds of pass."""


def by_itself(model, editor, batch_size):
    return score_answers(model, QUESTIONS, editor, batch_size=batch_size, progress=False).log_probabilities


def assert_equal_to_jobs_by_themselves(model, editors, batch_size=32):
    def job():
        return score_answers(model, QUESTIONS, batch_size=batch_size, progress=False).log_probabilities

    def same(one, other):
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)

    before, seen = by_itself(model, None, batch_size), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index, found in branched(BranchingRuns(model, editors), job, same):
            seen.append(index)
            assert same(found, by_itself(model, editors[index], batch_size))
    assert sorted(seen) == list(range(len(editors)))
    assert same(by_itself(model, None, batch_size), before)
    assert not any("forward" in vars(block) for block in model.blocks)


def test_every_job_equals_one_by_itself_to_the_bit(bridge):
    outputs, inside = make_editor(range(N_LAYERS)), make_editor(range(N_LAYERS), "mlp_out", seed=1)
    both = sl.Editor({**outputs.edits, **inside.edits})
    views = [both, both.without_layers([1]), outputs.last_layers(1), outputs.first_layers(2).at_positions("generated")]
    assert_equal_to_jobs_by_themselves(bridge, [*views, None])


def test_small_batches_and_conditions_come_out_the_same(llama):
    editor = make_editor(range(N_LAYERS))
    condition = sl.WhenAligned("blocks.0.hook_resid_post", torch.ones(editor.width), 0.0)
    views = [
        editor,
        editor.last_layers(1),
        editor.last_layers(1).when(condition),
        editor.last_layers(2).when(condition),
    ]
    assert_equal_to_jobs_by_themselves(llama, views, batch_size=2)


def test_blocks_are_run_once_for_editors_that_are_alike_up_to_them(llama):
    editor, counts = make_editor(range(N_LAYERS)), [0] * N_LAYERS
    passes = 0

    def counting(layer):
        def count(tensor, hook):
            counts[layer] += 1

        return f"blocks.{layer}.mlp.hook_out", count

    def job():
        nonlocal passes
        passes += 1
        return score_answers(llama, QUESTIONS, progress=False).log_probabilities

    list(branched(BranchingRuns(llama, [None, editor.last_layers(1)]), job, torch.equal))  # tried once per model
    views, passes = [editor, *(editor.at_layers([layer]) for layer in range(N_LAYERS))], 0
    with llama.hooks(fwd_hooks=list(map(counting, range(N_LAYERS)))):
        list(branched(BranchingRuns(llama, views), job, torch.equal))
    each = counts[0]
    assert counts == [each, 2 * each, 4 * each]  # after block 0, two are edited alike and two not at all
    assert passes == 4


def test_models_whose_blocks_cannot_be_skipped_do_whole_jobs(monkeypatch):
    model, editor = build_bridge("llama"), make_editor(range(N_LAYERS))
    first = next(iter(model.blocks))
    state, inner = SimpleNamespace(calls=0), type(first).forward

    def forward(self, hidden_states, *arguments, **options):
        """Adds up over blocks, so that skipping one changes those above it."""
        state.calls = 1 if self is first else state.calls + 1
        return inner(self, hidden_states * (1 + 0.01 * state.calls), *arguments, **options)

    monkeypatch.setattr(type(first), "forward", forward)
    views = [editor, editor.last_layers(2), editor.last_layers(1), None]
    with pytest.warns(SeaLensWarning, match="cannot be skipped"):
        found = dict(
            branched(
                BranchingRuns(model, views),
                lambda: score_answers(model, QUESTIONS, progress=False).log_probabilities.nan_to_num(),
                torch.equal,
            )
        )
    for index, view in enumerate(views):
        assert torch.equal(found[index], by_itself(model, view, 32).nan_to_num())
    assert not branching_jobs._SKIPS[model.original_model]
