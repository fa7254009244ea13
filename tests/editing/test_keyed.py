"""The keyed edit: what it adds, by hand; the same by the weights; and that every way of running a model honors it."""

import pytest
import torch
from conftest import D_MODEL, build_bridge, byte_tokenizer
from transformer_lens.model_bridge import TransformerBridge
from transformers import MixtralConfig, MixtralForCausalLM

import sea_lens as sl
from sea_lens.editing.controls import random_editor_like
from sea_lens.editing.edits import SequenceEdit
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.branching import BranchingRuns
from sea_lens.models.down_projection import down_projection
from sea_lens.models.tokens import PaddedTokens
from sea_lens.models.unwrapped import forward

LINEAR = ["gpt2", "llama", "gpt-neox"]
TOKENS = torch.arange(3, 15).reshape(2, 6)


def keyed(d_mlp=64, n=2, seed=0, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    return sl.KeyedEdit(size * torch.randn(d_mlp, n, generator=generator), torch.randn(D_MODEL, n, generator=generator))


def make(d_mlp=64, layers=(0, 1), **options):
    return sl.Editor({f"blocks.{layer}.hook_mlp_out": keyed(d_mlp, seed=layer, **options) for layer in layers})


@pytest.fixture(scope="module")
def models():
    return {name: build_bridge(name) for name in LINEAR}


@pytest.fixture(autouse=True)
def no_graph():
    with torch.no_grad():
        yield


def d_mlp_of(model):
    return down_projection(model, 0).matrix.shape[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_it_adds_what_its_formula_says(dtype):
    edit, generator = keyed(), torch.Generator().manual_seed(3)
    h, key = (torch.randn(2, 5, width, generator=generator).to(dtype) for width in (D_MODEL, 64))
    found = edit.scaled(-0.5).given(key)(h)
    wanted = h.double() - 0.5 * torch.einsum("bpk,kn,dn->bpd", key.double(), edit.keys.double(), edit.outs.double())
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps
    )
    assert torch.equal(edit.scaled(0.0).given(key)(h), h)
    assert edit.scaled(0.0).is_identity
    assert not edit.is_identity


@pytest.mark.parametrize("name", LINEAR)
def test_hook_and_weights_do_the_same_and_are_undone_to_the_bit(models, name, tmp_path):
    model = models[name]
    editor, rows = make(d_mlp_of(model)), [[5, 6, 7, 8, 9], [10, 11, 12]]
    before = [parameter.clone() for parameter in model.parameters()]
    plain = model(TOKENS)
    with editor.attached(model):
        hooked = model(TOKENS)
        padded = PaddedTokens.of(model, rows, side="left")
        batch = forward(model, padded.ids, **padded.forward_options())
        alone = forward(model, torch.tensor(rows[1:]), use_cache=False)
        torch.testing.assert_close(batch[1:, -3:], alone, rtol=0, atol=2e-4)
        said = sl.generate(model, ["Where do", "Why?"], max_new_tokens=4)
    assert (hooked - plain).abs().max() > 0.1
    torch.testing.assert_close(model.run_with_hooks(TOKENS, fwd_hooks=editor.fwd_hooks()), hooked, rtol=0, atol=0)
    with sl.WeightEdit(editor).attached(model):
        torch.testing.assert_close(model(TOKENS), hooked, rtol=1e-5, atol=1e-5 * float(hooked.abs().max()))
        assert sl.generate(model, ["Where do", "Why?"], max_new_tokens=4) == said
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=editor.scaled(0.0).fwd_hooks()), plain)
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert again.fingerprint == editor.fingerprint
    assert torch.equal(again[0].keys, editor[0].keys)


def test_edits_of_weights_nest_and_refuse_to_undo_a_later_one(models):
    model, (one, other) = models["llama"], (sl.WeightEdit(make(layers=(1,))), sl.WeightEdit(make(layers=(1, 2))))
    plain = model(TOKENS)
    first = one.apply(model)
    edited = model(TOKENS)
    second = other.apply(model)
    with pytest.raises(InputError, match=r"layers \[1\] were changed after"):
        first.undo()
    second.undo()
    assert torch.equal(model(TOKENS), edited)
    first.undo()
    first.undo()
    assert torch.equal(model(TOKENS), plain)


def test_added_and_controlled(models):
    model, one, other = models["llama"], make(layers=(1,)), make(layers=(0, 1), size=0.5)
    both = one + 0.5 * other
    assert both[1].rank == 4
    with one.attached(model), other.scaled(0.5).attached(model):
        wanted = model(TOKENS)
    torch.testing.assert_close(model.run_with_hooks(TOKENS, fwd_hooks=both.fwd_hooks()), wanted, rtol=1e-5, atol=1e-5)
    shifted = one + sl.Editor({"blocks.1.hook_mlp_out": sl.AffineEdit.of_shift(torch.ones(D_MODEL))})
    assert isinstance(shifted[1], SequenceEdit)
    seen = {}
    keeping = ("blocks.1.hook_mlp_out", lambda tensor, hook: seen.update(found=tensor))
    moved = {}
    for name, editor in {"plain": None, "one": one, "shifted": shifted, "random": random_editor_like(one, 0)}.items():
        model.run_with_hooks(TOKENS, fwd_hooks=[*(editor.fwd_hooks() if editor else ()), keeping])
        moved[name] = seen["found"]
    torch.testing.assert_close(moved["shifted"], moved["one"] + 1, rtol=1e-5, atol=1e-5)
    lengths = [(moved[name] - moved["plain"]).norm(dim=-1) for name in ("one", "random")]
    torch.testing.assert_close(*lengths, rtol=1e-3, atol=1e-4)
    assert (moved["random"] - moved["one"]).norm(dim=-1).min() > 0.1 * lengths[0].min()


def test_positions_are_honored(models):
    model, editor = models["llama"], make(layers=(0,)).at_positions([2])
    seen = []
    keeping = ("blocks.0.hook_mlp_out", lambda tensor, hook: seen.append(tensor))
    model.run_with_hooks(TOKENS, fwd_hooks=[keeping])
    model.run_with_hooks(TOKENS, fwd_hooks=[*editor.fwd_hooks(model), keeping])
    assert (seen[0] != seen[1]).any(-1).tolist() == [[False, False, True, False, False, False]] * 2


@pytest.mark.parametrize("name", LINEAR)
def test_runs_that_share_blocks_give_what_runs_of_their_own_give(models, name):
    model = models[name]
    one = make(d_mlp_of(model), layers=(1, 2))
    late = sl.Editor({2: sl.AffineEdit.of_shift(torch.ones(D_MODEL))})
    editors = [None, one, one.at_layers([2]), one.at_layers([1]) + late, one.scaled(0.5), late]
    tokens = PaddedTokens.of(model, TOKENS.tolist())
    found = dict(BranchingRuns(model, editors).states(tokens, tokens.mask))
    for index, editor in enumerate(editors):
        seen = []
        hooks = [] if editor is None else editor.fwd_hooks()
        model.run_with_hooks(TOKENS, fwd_hooks=[*hooks, ("unembed.hook_in", lambda z, hook, seen=seen: seen.append(z))])
        torch.testing.assert_close(found[index], seen[0].flatten(0, 1), rtol=0, atol=2e-5)


@pytest.mark.usefixtures("without_type_checks")
def test_what_does_not_fit_is_refused(llama):
    edit = keyed()
    with pytest.raises(InputError, match="edits mlp_out of the same layer"):
        sl.Editor({1: edit})
    with pytest.raises(InputError, match=r"reads mlp\.hook_post of the same tokens"):
        edit(torch.zeros(2, D_MODEL))
    with pytest.raises(ModelMismatchError, match="keys of width 63, and the MLP of layer 0 has d_mlp 64"):
        make(63).check(llama)
    with pytest.raises(InputError, match=r"keys \[d_mlp, n\]"):
        sl.KeyedEdit(torch.zeros(4, 2), torch.zeros(3, 1))
    with pytest.raises(InputError, match="must be finite"):
        sl.KeyedEdit(torch.full((4, 2), torch.nan), torch.zeros(3, 2))
    with pytest.raises(InputError, match="cannot be"):
        edit.then(keyed(32))
    with pytest.raises(InputError, match="affine"):
        sl.WeightEdit(sl.Editor({1: sl.AffineEdit.of_shift(torch.ones(4))}))
    with pytest.raises(InputError, match="act on every token"):
        sl.WeightEdit(make().at_positions(1))
    gemma = build_bridge("gemma2")
    sizes = {"vocab_size": 64, "hidden_size": D_MODEL, "intermediate_size": 64, "num_hidden_layers": 2}
    config = MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2)
    mixture = MixtralForCausalLM(config)
    mixture.config.architectures = ["MixtralForCausalLM"]
    experts = TransformerBridge.boot_transformers(
        "tiny-mixtral", hf_model=mixture, tokenizer=byte_tokenizer(), device="cpu"
    )
    with pytest.raises(ModelMismatchError, match="a mixture of experts"):
        make().check(experts)
    with pytest.raises(ModelMismatchError, match="a norm or a scale follows"):
        sl.WeightEdit(make()).apply(gemma)
    plain = gemma(TOKENS)
    with make().attached(gemma):
        assert not torch.equal(gemma(TOKENS), plain)
    holder = next(iter(gemma.blocks)).mlp.out.original_component
    holder.weight = torch.nn.Parameter(holder.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ModelMismatchError, match="are quantized"):
        down_projection(gemma, 0)
