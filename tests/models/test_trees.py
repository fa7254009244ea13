"""Texts as a tree in one row, against each text alone."""

import random
import warnings

import pytest
import torch
from conftest import D_MODEL, Passes, build_bridge, byte_tokenizer
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3TextConfig, MambaConfig, MixtralConfig

from sea_lens import Questions
from sea_lens.errors import SeaLensWarning
from sea_lens.models.log_probs import score_answers
from sea_lens.models.prefixes import CachedPrefix, how_to_run
from sea_lens.models.tokens import token_ids
from sea_lens.models.trees import PaddedTrees, TokenTree, can_branch, in_equal_parts, run_trees

BRANCHING = ["gpt2", "llama", "gpt-neox", "opt", "qwen2", "mistral", "gemma2"]


def texts(seed=0, n=6, beginning=5):
    """Token rows that part at different places."""
    draw = random.Random(seed)
    start = [draw.randrange(2, 250) for _ in range(beginning)]
    return [start + [draw.randrange(2, 4) for _ in range(draw.randrange(1, 7))] for _ in range(n)]


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_holds_every_beginning_once(seed):
    rows = texts(seed, n=1 + seed % 5, beginning=seed % 3)
    tree = TokenTree.of(rows)
    assert [[tree.ids[place] for place in path] for path in tree.paths] == rows
    assert all([-1, *path][:-1] == [tree.parents[place] for place in path] for path in tree.paths)
    assert len(tree) == len({tuple(row[:length]) for row in rows for length in range(1, len(row) + 1)})


@torch.no_grad()
@pytest.mark.parametrize("architecture", BRANCHING)
def test_every_text_comes_out_as_alone(architecture):
    model = build_bridge(architecture)
    assert can_branch(model, 100)
    groups = [texts(0), texts(1, n=2, beginning=3), texts(2, n=1, beginning=9)]
    groups = [[[7, 8, 9, 7, *row] for row in group] for group in groups]
    _, beginning = CachedPrefix(model).extended(torch.tensor([[7, 8, 9]]), [0])
    for prefix in (CachedPrefix(model), beginning):
        trees = [TokenTree.of([row[prefix.length :] for row in group]) for group in groups]
        padded = PaddedTrees.of(model, trees)
        logits = torch.cat([*run_trees(prefix, padded, [4] * len(trees), padded.depths >= 0)])
        assert len(logits) == sum(map(len, trees))
        for tree, group, own in zip(trees, groups, torch.split(logits, list(map(len, trees))), strict=True):
            for path, row in zip(tree.paths, group, strict=True):
                alone = model(torch.tensor([row]), use_cache=False)[0, prefix.length :]
                torch.testing.assert_close(own[path], alone, atol=2e-5, rtol=1e-5)


def test_a_model_branches_as_far_as_its_window_reaches():
    wide = build_bridge("mistral", sliding_window=100)
    assert (can_branch(wide, 100), can_branch(wide, 101)) == (True, False)
    assert not can_branch(build_bridge("mistral", sliding_window=16), 12)  # nothing of its size can be tried
    assert can_branch(build_bridge("qwen2"), 1000)  # `max_window_layers` counts layers


COMMON = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "hidden_size": D_MODEL}
CONFIGS = {
    "counts distances in columns": BloomConfig(n_layer=2, n_head=4, **COMMON),
    "recurrent": MambaConfig(num_hidden_layers=2, state_size=8, **COMMON),
    "sliding windows": Gemma3TextConfig(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=90,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **COMMON,
    ),
    "experts": MixtralConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, **COMMON
    ),
}


@pytest.mark.parametrize(("kind", "branches"), zip(CONFIGS, (False, False, True, True), strict=True))
def test_answers_are_scored_as_alone_whether_a_model_branches_or_not(kind, branches):
    torch.manual_seed(0)
    hf_model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    hf_model.config.architectures = [type(hf_model).__name__]
    model = TransformerBridge.boot_transformers("tiny", hf_model=hf_model, tokenizer=byte_tokenizer(), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        assert (how_to_run(model, None, 8)[1] and can_branch(model, 80)) == branches
        asked = Questions.from_lists(
            ["What?", "Where to?"], [["yes", "yes it is"], ["a"]], [["no", "no it"], ["b", "c d"]]
        )
        found = score_answers(model, asked, progress=False)
    expected = []
    for question in asked:
        for text in (*question.right, *question.wrong):
            ids = token_ids(model, f"{question.prompt} {text}")
            with torch.no_grad():
                logits = model(torch.tensor([ids]), use_cache=False)[0].double().log_softmax(-1)
            said = range(len(ids) - len(text) - 1, len(ids))
            expected.append(sum(logits[position - 1, ids[position]].item() for position in said))
    assert found.log_probabilities[found.n_tokens > 0].tolist() == pytest.approx(expected, abs=2e-5)


def test_what_answers_begin_with_is_run_once():
    model = build_bridge("llama")
    asked = Questions.from_lists(["Which one?"], [["the sea and sky"]], [["the sea and I", "the sea or", "the moon"]])
    score_answers(model, asked, progress=False)  # the model has been tried by now
    with Passes(model) as passes:
        score_answers(model, asked, progress=False)
    assert (passes.n, passes.tokens) == (1, len("<Which one? the sea and sk") + len("o") + len("moo"))


@pytest.mark.parametrize(("n", "most"), [(1, 1), (7, 3), (8, 3), (9, 3), (0, 2), (5, 9)])
def test_parts_are_as_equal_as_can_be(n, most):
    parts = list(in_equal_parts(range(n), most))
    assert [number for part in parts for number in part] == list(range(n))
    sizes = list(map(len, parts))
    assert len(parts) == -(-n // most)
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 1)
