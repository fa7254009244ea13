"""Beginnings that texts share are run once, and the activations are those of single texts all the same."""

import warnings

import pytest
import torch
from conftest import build_bridge
from test_collect import make_editor

from sea_lens import Demonstrations, SeaLensWarning, collect_activations
from sea_lens.models import demonstration_texts
from sea_lens.models.activations import ROLES
from sea_lens.models.collect import ActivationStream
from sea_lens.models.tokens import join, token_ids

FEW_SHOT = "Answer with few words. Q: sea? A: blue. Q: "
SHARING = Demonstrations.from_lists(
    prompts=[FEW_SHOT + question for question in ("who made it? A:", "and the sun, where does it go? A:", "one")],
    positives=["we did!", "west", "to the moon;"],
    negatives=["no one", "into a tree", ""],
    neutrals=["she", "it sinks", "it is..."],
)


def collect(model, demonstrations=SHARING, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return collect_activations(model, demonstrations, progress=False, **options)


def tokens_run(model, run):
    """How many tokens the first block saw, padding included."""
    seen = []
    with model.hooks(fwd_hooks=[("blocks.0.hook_in", lambda tensor, hook: seen.append(tensor[..., 0].numel()))]):
        run()
    return sum(seen)


@pytest.mark.parametrize(("token", "batch_size"), [("last", 2), ("last_content", 3), ("mean", 2), ("last", 1)])
def test_a_shared_beginning_changes_nothing(bridge, token, batch_size):
    """Compared with each text run alone and whole; an empty answer's token is the prompt's last."""
    shared = collect(bridge, token=token, batch_size=batch_size)
    apart = collect(bridge, token=token, batch_size=batch_size, share_prefix=False)
    for role in ROLES:
        for layer in shared.layers:
            torch.testing.assert_close(shared[role][layer], apart[role][layer], atol=1e-5, rtol=1e-5)
    for index, row in enumerate(SHARING):
        for role in ROLES if token == "last" else []:
            ids = torch.tensor([token_ids(bridge, join(row.prompt, getattr(row, role)))])
            with torch.no_grad():
                last = bridge(ids, stop_at_layer=2, use_cache=False)[0, -1]
            torch.testing.assert_close(shared[role][1][index], last, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("position", [None, 5, len(FEW_SHOT) + 4])
def test_under_an_editor_the_beginning_is_edited_too(bridge, position):
    editor = make_editor(layers=(0, 2))
    editor = editor if position is None else editor.at_positions(position)
    shared, apart = collect(bridge, editor=editor), collect(bridge, editor=editor, share_prefix=False)
    plain = collect(bridge)
    for role in ROLES:
        for layer in shared.layers:
            torch.testing.assert_close(shared[role][layer], apart[role][layer], atol=5e-5, rtol=1e-4)
    assert (shared.neutral[2] - plain.neutral[2]).abs().max() > 0.1


def test_what_is_shared_is_run_once(llama):
    """The few-shot prompt for all, and each prompt once for its three completions."""
    texts = [[len(row.prompt) + 1 + len(" " + getattr(row, role)) for role in ROLES] for row in SHARING]
    few = tokens_run(llama, lambda: collect(llama, batch_size=1))
    many = tokens_run(llama, lambda: collect(llama, batch_size=1, share_prefix=False))
    assert many == pytest.approx(sum(map(sum, texts)), abs=3)
    assert few < many - 8 * (len(FEW_SHOT) - 1) - 2 * len("and the sun, where does it go?")
    # A layer that is not asked for is not run, neither for the beginnings nor for the rest.
    reached = []
    watch = [(f"blocks.{layer}.hook_mlp_out", lambda t, hook: reached.append(hook.layer())) for layer in range(3)]
    with llama.hooks(fwd_hooks=watch):
        collect(llama, layers=[0])
    assert set(reached) == {0}
    # After the last block there is nothing to stop at, but logits are of one token a text.
    with llama.hooks(fwd_hooks=[("unembed.hook_in", lambda tensor, hook: reached.append(tensor.shape[1]))]):
        collect(llama)
    assert reached[-1] == 1


def test_a_beginning_longer_than_a_sliding_window():
    model = build_bridge("mistral", sliding_window=8)
    shared, apart = collect(model, batch_size=3), collect(model, batch_size=3, share_prefix=False)
    wide = collect(build_bridge("mistral"), batch_size=3)
    for role in ROLES:
        torch.testing.assert_close(shared[role][2], apart[role][2], atol=1e-5, rtol=1e-5)
    assert (shared.neutral[2] - wide.neutral[2]).abs().max() > 0.01  # the window did something


def test_by_the_published_rule_nothing_is_shared(llama):
    basis = torch.linalg.qr(torch.randn(3, 32, 2, generator=torch.Generator().manual_seed(0))).Q
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        editor = read_published_editor(
            basis @ basis.mT, torch.eye(32) - basis.flip(0) @ basis.flip(0).mT, normalization="feature"
        )
        stream = ActivationStream(llama, SHARING, editor=editor)
    assert not stream.shares_prefix
    assert collect(llama, editor=editor, batch_size=1).n == 3


def test_a_stream_holds_every_demonstration_once_the_longest_first(llama):
    stream = ActivationStream(llama, SHARING, batch_size=2)
    assert [stream.rows(number).tolist() for number in range(len(stream))] == [[1, 0], [2]]
    whole = collect(llama, batch_size=2)
    for batch, rows in zip(stream, ([1, 0], [2]), strict=True):
        for role in ROLES:
            assert torch.equal(batch[role][1], whole[role][1][rows])
    with pytest.raises(IndexError, match="Batch 2 was asked for, and there are 2"):
        stream[2]


def test_texts_beyond_what_is_kept_are_tokenised_again(llama, monkeypatch):
    whole = collect(llama, batch_size=2)
    first = sum(len(token_ids(llama, join(SHARING[0].prompt, getattr(SHARING[0], role)))) for role in ROLES)
    monkeypatch.setattr(demonstration_texts, "KEPT_TOKENS", first)
    stream = ActivationStream(llama, SHARING, batch_size=2)
    assert len(stream.texts._kept) == first
    for batch, rows in zip(stream, ([1, 0], [2]), strict=True):
        assert torch.equal(batch.positive[2], whole.positive[2][rows])


def test_a_model_spread_over_devices_is_edited_where_each_layer_is():
    """Tensors of an edit follow the activation's device. No values are there on `meta`, but a device that differs counts."""
    edit = make_editor(layers=(0,))[0]
    for tensor in (torch.randn(2, 32), torch.randn(2, 32, device="meta"), torch.randn(2, 32, dtype=torch.bfloat16)):
        edited = edit(tensor)
        assert (edited.device, edited.dtype) == (tensor.device, tensor.dtype)
    assert {(device.type, dtype) for device, dtype in edit._placed} == {("cpu", torch.float32), ("meta", torch.float32)}
    placed = edit._placed[torch.device("cpu"), torch.float32]
    edit(torch.randn(2, 32))
    assert edit._placed[torch.device("cpu"), torch.float32] is placed
