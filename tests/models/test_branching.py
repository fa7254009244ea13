"""Runs that share blocks come out as separate full runs do, to the bit."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import N_LAYERS, build_bridge, make_editor

import sea_lens as sl
from sea_lens import SeaLensWarning, random_editor_like
from sea_lens.errors import InputError
from sea_lens.models.branching import BranchingRuns
from sea_lens.models.hooks import logits_at
from sea_lens.models.tokens import PaddedTokens

ROWS = [[0, 5, 9, 33, 44, 60], [0, 7, 8], [0, 100, 23, 24]]
EVERY = range(N_LAYERS)


def many_views(editor):
    control = random_editor_like(editor, 0)
    views = [None, editor, editor.at_positions(2), editor.at_positions(2).at_layers([1]), editor.at_positions("prompt")]
    for layer in editor.layers:
        views += [editor.at_layers([layer]), editor.without_layers([layer]), control.at_layers([layer])]
    views += [view for n in (1, 2, N_LAYERS) for view in (editor.first_layers(n), editor.last_layers(n))]
    return [*views, control, None, editor]


def mixed_views():
    """Editors of several sites: inside blocks, of their outputs, of both, and outside the blocks."""
    outputs, inside = make_editor(EVERY), make_editor(EVERY, "mlp_out", seed=1)
    both = sl.Editor({**outputs.edits, **inside.edits})
    last = sl.Editor({sl.Site(None, "unembed.hook_in"): outputs[2]})
    also = sl.Editor({**both.edits, **last.edits})
    views = [both, None, outputs, inside, last, also, also.at_layers([2]), both.at_positions(1)]
    return views + [view for layer in EVERY for view in (both.without_layers([layer]), both.at_layers([layer]))]


def everywhere(tokens):
    return torch.ones_like(tokens.mask)


def full_run(model, editor, tokens):
    with torch.no_grad(), model.hooks(fwd_hooks=[] if editor is None else editor.fwd_hooks(model)):
        return logits_at(model, tokens, everywhere(tokens))


def logits_of_runs(runs, tokens):
    for index, states in runs.states(tokens, everywhere(tokens)):
        yield index, runs.unembedding(index).logits(states)


def assert_equal_to_full_runs(model, editors, side):
    tokens = PaddedTokens.of(model, ROWS, side, prompt_lengths=[4, 2, 1])
    before, seen = full_run(model, None, tokens), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that blocks cannot be skipped would be a warning
        for index, logits in logits_of_runs(BranchingRuns(model, editors), tokens):
            seen.append(index)
            assert torch.equal(logits, full_run(model, editors[index], tokens))
    assert seen[0] == 0
    assert sorted(seen) == list(range(len(editors)))
    assert torch.equal(full_run(model, None, tokens), before)
    assert not any("forward" in vars(block) for block in model.blocks)


def test_every_run_equals_a_full_one_to_the_bit(bridge):
    assert_equal_to_full_runs(bridge, mixed_views(), "right")
    assert_equal_to_full_runs(bridge, many_views(make_editor(EVERY))[:6], "left")


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_every_view_equals_a_full_run_to_the_bit(llama, site):
    assert_equal_to_full_runs(llama, many_views(make_editor(EVERY, site)), "right")


def count_blocks(model, run):
    """How often each block's finished output is reached."""
    counts = [0] * N_LAYERS

    def count(tensor, hook):
        counts[hook.layer()] += 1

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", count) for layer in range(N_LAYERS)]):
        list(run())
    return counts


def test_each_block_is_run_once_for_runs_that_are_alike_up_to_it():
    llama, editor = build_bridge("llama"), make_editor(EVERY)
    tokens = PaddedTokens.of(llama, ROWS)
    list(BranchingRuns(llama, [None]).states(tokens, everywhere(tokens)))  # what a model can do is tried once
    runs = BranchingRuns(llama, [None, *(editor.at_layers([layer]) for layer in range(N_LAYERS))])
    assert count_blocks(llama, lambda: runs.states(tokens, everywhere(tokens))) == [
        2,
        3,
        4,
    ]  # on the model's first batch, a full run to compare with
    assert count_blocks(llama, lambda: runs.states(tokens, everywhere(tokens))) == [1, 2, 3]
    naive = BranchingRuns(llama, runs.editors, skips_blocks=False)
    assert count_blocks(llama, lambda: naive.states(tokens, everywhere(tokens))) == [4, 4, 4]


def test_a_model_is_checked_once_for_every_layer_to_start_from(monkeypatch):
    llama, editor, full = build_bridge("llama"), make_editor(EVERY), []
    tokens, full_run = PaddedTokens.of(llama, ROWS), BranchingRuns._full_run
    monkeypatch.setattr(BranchingRuns, "_full_run", lambda *given: full.append(given[3]) or full_run(*given))
    for number, layer in enumerate([1, 1, 2, 2, 1]):
        for _ in range(2):
            list(BranchingRuns(llama, [None, editor.at_layers([layer])]).states(tokens, everywhere(tokens)))
        assert len(full) == (1 if number < 2 else 2)


def test_a_users_own_hooks_still_act(llama):
    editor, tokens = make_editor(EVERY), PaddedTokens.of(llama, ROWS)
    views = [None, editor.at_layers([1]), editor.without_layers([1])]
    with llama.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda tensor, hook: tensor * 1.5)]):
        for index, logits in logits_of_runs(BranchingRuns(llama, views), tokens):
            assert torch.equal(logits, full_run(llama, views[index], tokens))


def test_a_model_whose_blocks_cannot_be_skipped_is_run_in_full(monkeypatch):
    model = build_bridge("llama")
    editor, tokens = make_editor(EVERY), PaddedTokens.of(model, ROWS)
    first = next(iter(model.blocks))
    state = SimpleNamespace(calls=0)
    inner = type(first).forward

    def forward(self, hidden_states, *arguments, **options):
        """Adds up over blocks, so that skipping one changes those above it."""
        state.calls = 1 if self is first else state.calls + 1
        return inner(self, hidden_states * (1 + 0.01 * state.calls), *arguments, **options)

    monkeypatch.setattr(type(first), "forward", forward)
    views = [None, editor.at_layers([1]), editor.at_layers([2])]
    with pytest.warns(SeaLensWarning, match="cannot be skipped"):
        found = dict(logits_of_runs(BranchingRuns(model, views), tokens))
    assert all(torch.equal(found[index], full_run(model, view, tokens)) for index, view in enumerate(views))


def test_blocks_that_return_tuples_are_run_in_full(monkeypatch):
    """As in models of another build: what we pass on in a skipped block's stead is then not what the next one takes."""
    model = build_bridge("llama")
    editor, tokens = make_editor(EVERY), PaddedTokens.of(model, ROWS)
    kind = type(next(iter(model.blocks)))
    inner = kind.forward

    def forward(self, hidden_states, *arguments, **options):
        if isinstance(hidden_states, tuple):
            hidden_states = hidden_states[0]
        elif self is not next(iter(model.blocks)):
            raise TypeError("a tuple was expected")
        return (inner(self, hidden_states, *arguments, **options),)

    plain = full_run(model, None, tokens)
    norm = type(model.ln_final)
    norm_forward = norm.forward

    def unpacking(self, hidden_states, *arguments, **options):
        first = hidden_states[0] if isinstance(hidden_states, tuple) else hidden_states
        return norm_forward(self, first, *arguments, **options)

    monkeypatch.setattr(kind, "forward", forward)
    monkeypatch.setattr(norm, "forward", unpacking)
    assert torch.equal(full_run(model, None, tokens), plain)
    views = [None, editor.at_layers([0]), editor.at_layers([1])]
    with pytest.warns(SeaLensWarning, match="cannot be skipped"):
        found = dict(logits_of_runs(BranchingRuns(model, views), tokens))
    assert sorted(found) == [0, 1, 2]
    assert all(torch.equal(found[index], full_run(model, view, tokens)) for index, view in enumerate(views))
    assert not any("forward" in vars(block) for block in model.blocks)


def test_blocks_that_need_a_later_one_than_was_skipped_first_are_run_in_full(monkeypatch):
    """As in models whose last blocks share the keys of one before: skipping the blocks below that is exact."""
    model = build_bridge("llama")
    editor, tokens = make_editor(EVERY), PaddedTokens.of(model, ROWS)
    *_, before, last = model.blocks
    kind, shared = type(last), {}
    inner = kind.forward

    def forward(self, *arguments, **options):
        if self is before:
            shared["keys"] = True
        elif self is last:
            shared.pop("keys")
        return inner(self, *arguments, **options)

    monkeypatch.setattr(kind, "forward", forward)
    views = [None, *(editor.at_layers([layer]) for layer in EVERY)]
    with pytest.warns(SeaLensWarning, match="cannot be skipped"):
        found = dict(logits_of_runs(BranchingRuns(model, views), tokens))
    assert all(torch.equal(found[index], full_run(model, view, tokens)) for index, view in enumerate(views))


def test_activations_that_overflow_are_no_reason_to_run_in_full(llama):
    """A NaN equals nothing, itself included, and says nothing about whether blocks can be skipped."""
    editor = sl.Editor({1: sl.AffineEdit.of_shift(torch.full((32,), 3e38), strength=2.0)})
    tokens, runs = PaddedTokens.of(llama, ROWS), BranchingRuns(llama, [None, editor])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dict(logits_of_runs(runs, tokens))
    assert found[1].isnan().any()
    assert count_blocks(llama, lambda: runs.states(tokens, everywhere(tokens))) == [1, 1, 2]


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_an_error_in_a_resumed_run_leaves_the_model_whole(llama, site):
    editor, tokens = make_editor(EVERY, site), PaddedTokens.of(llama, ROWS)
    plain, runs = full_run(llama, None, tokens), BranchingRuns(llama, [None, editor.at_layers([2])])
    list(
        runs.states(tokens, everywhere(tokens))
    )  # the check is done, and what fails now fails in a run that skips blocks
    calls = []

    def fail(tensor, hook):
        calls.append(hook.name)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with llama.hooks(fwd_hooks=[("unembed.hook_in", fail)]), pytest.raises(KeyboardInterrupt):
        list(runs.states(tokens, everywhere(tokens)))
    assert len(calls) == 2
    assert not any("forward" in vars(block) for block in llama.blocks)
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())
    assert torch.equal(full_run(llama, None, tokens), plain)


def test_an_error_inside_leaves_the_model_whole(llama):
    editor, tokens = make_editor(EVERY), PaddedTokens.of(llama, ROWS)
    plain = full_run(llama, None, tokens)
    runs = BranchingRuns(llama, [None, editor.at_layers([2])]).states(tokens, everywhere(tokens))
    next(runs)
    runs.close()
    assert torch.equal(full_run(llama, None, tokens), plain)
    assert not any("forward" in vars(block) for block in llama.blocks)


def test_an_editor_that_mixes_tokens_is_run_row_by_row(llama):
    from sea_lens.methods.sea.published import PublishedEdit

    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(32, 2, generator=generator)).Q for _ in range(2)]
    tokens, views = PaddedTokens.of(llama, ROWS), [None, sl.Editor({1: PublishedEdit(*bases)})]
    runs = BranchingRuns(llama, views)
    found = {index: runs.unembedding(index).logits(states) for index, states in runs.states(tokens, tokens.mask)}
    for index, view in enumerate(views):
        alone = [full_run(llama, view, PaddedTokens.of(llama, [row])) for row in ROWS]
        torch.testing.assert_close(found[index], torch.cat(alone))


def test_no_runs_are_refused(llama):
    with pytest.raises(InputError, match="At least one run"):
        BranchingRuns(llama, [])
