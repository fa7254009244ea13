"""Pass: the same positions for every caller."""

import pytest
import torch
from conftest import build_bridge

from sea_lens.models.passes import tracked


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2"])
def model(request):
    return build_bridge(request.param)


def test_positions_count_from_the_beginning_of_the_text_under_either_padding(model):
    ids = torch.tensor([[1, 1, 5, 6], [7, 8, 9, 10]])
    for mask, expected in (
        ([[0, 0, 1, 1], [1, 1, 1, 1]], [[-1, -1, 0, 1], [0, 1, 2, 3]]),
        ([[1, 1, 0, 0], [1, 1, 1, 1]], [[0, 1, -1, -1], [0, 1, 2, 3]]),
    ):
        with tracked(model) as passes:
            model(ids, attention_mask=torch.tensor(mask), use_cache=False)
            assert passes.current.positions.tolist() == expected
            assert passes.current.begins
            assert passes.current.prompt_lengths.tolist() == [2, 4]


@pytest.mark.parametrize("generate", ["transformer_lens", "hugging_face", "without_cache"])
def test_a_generation_goes_on_where_its_prompt_ended(model, generate):
    ids, mask = torch.tensor([[1, 1, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    seen = []
    with tracked(model) as passes:
        handle = model.original_model.register_forward_hook(lambda *_: seen.append(passes.current))
        if generate == "transformer_lens":
            model.generate(
                ids, attention_mask=mask, max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False
            )
        else:
            model.original_model.generate(
                ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False,
                use_cache=generate == "hugging_face",
            )  # fmt: skip
        handle.remove()
    last = seen[-1]
    assert last.positions[:, -1].tolist() == [3, 5]
    assert last.prompt_lengths.tolist() == [2, 4]
    assert [one.begins for one in seen].count(True) >= 1
    assert last.begins == (generate == "without_cache")


def test_several_tokens_over_a_cache_and_one_token_prompts(model):
    with tracked(model) as passes, torch.no_grad():
        _, cache = model(torch.tensor([[5, 6, 7]]), return_type="logits_and_cache", use_cache=True)
        model(torch.tensor([[8, 9]]), past_key_values=cache, use_cache=True)
        assert passes.current.positions.tolist() == [[3, 4]]
        assert not passes.current.begins
        assert passes.current.prompt_lengths.tolist() == [3]
        model(torch.tensor([[5]]), use_cache=False)
        assert passes.current.positions.tolist() == [[0]]
        assert passes.current.begins


def test_a_runner_tells_prompt_lengths(model):
    with tracked(model) as passes:
        with passes.telling(torch.tensor([2, 3])):
            model(torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]]), use_cache=False)
            assert passes.current.prompt_lengths.tolist() == [2, 3]
        model(torch.tensor([[5, 6, 7, 8]]), use_cache=False)
        assert passes.current.prompt_lengths.tolist() == [4]


def test_trackers_share_and_leave_nothing_behind(model):
    with tracked(model) as one, tracked(model) as other:
        assert one is other
    assert not model.original_model._forward_pre_hooks


@pytest.mark.parametrize(
    "how", [{"cache_implementation": "static"}, {"num_beams": 2}, {"num_beams": 2, "use_cache": False}]
)
def test_static_caches_and_beams_leave_the_prompt_where_it_was(how):
    model = build_bridge("llama")
    ids, mask = torch.tensor([[1, 1, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    seen = []
    with tracked(model) as passes:
        handle = model.original_model.register_forward_hook(lambda *_: seen.append(passes.current))
        model.original_model.generate(
            ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False, **how
        )
        handle.remove()
    n = how.get("num_beams", 1)
    assert all(one.prompt_lengths.tolist() == [2] * n + [4] * n for one in seen)
    assert seen[0].positions.tolist() == [[-1, -1, 0, 1]] * n + [[0, 1, 2, 3]] * n
    assert seen[-1].positions[:, -1].tolist() == [5] * n + [7] * n
