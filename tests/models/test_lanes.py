"""Rows that come and go, against passes over the whole of each."""

import pytest
import torch
from conftest import Passes, build_bridge, byte_tokenizer, make_editor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, MambaConfig

from sea_lens import Editor, Site
from sea_lens.models import fused
from sea_lens.models.generate import greedy_answers
from sea_lens.models.lanes import Lanes, _is_exact, lanes_for
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.tokens import token_ids

OPTIONS = {"stop": (), "progress": False}
PROMPTS = ["The sky is", "a", "one two three, and then some more", "Q: who? A:", "xyz", "red", "no"]


@torch.no_grad()
def after_whole(model, rows):
    return torch.stack([model(torch.tensor([row]), use_cache=False)[0, -1] for row in rows])


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(
    ("architecture", "changes"), [("llama", {}), ("gemma2", {"sliding_window": 9}), ("gpt2", {}), ("opt", {})]
)
@torch.no_grad()
def test_rows_that_come_and_go_have_the_logits_of_whole_passes(architecture, changes, edited):
    """Whatever order they come and go in, and however often room is made."""
    model = build_bridge(architecture, **changes)
    editor = make_editor().at_positions("not first")
    generator = torch.Generator().manual_seed(len(architecture))

    def draw(n):
        return torch.randint(2, 250, (n,), generator=generator).tolist()

    beginning = draw(5)
    with editor.attached(model) if edited else torch.no_grad():
        for fuse in (True, False) if _is_exact(model, True) else (False,):
            lanes, rows = Lanes(model, 4, beginning, room=3, fuse=fuse), list[list[int]]()
            for turn in range(12):
                if rows and turn % 3 == 2:
                    lane = int(torch.randint(len(rows), (1,), generator=generator))
                    lanes.leave(lane)
                    rows[lane] = rows[-1]
                    rows.pop()
                free = 4 - len(rows)
                if turn % 3 == 0 and free:
                    entering = sorted((beginning + draw(1 + n * 3) for n in range(free)), key=len, reverse=True)
                    torch.testing.assert_close(
                        lanes.enter(entering), after_whole(model, entering), atol=2e-5, rtol=1e-4
                    )
                    rows += entering
                rows = [[*row, token] for row, token in zip(rows, draw(len(rows)), strict=True)]
                found = lanes.step([row[-1] for row in rows])
                torch.testing.assert_close(found, after_whole(model, rows), atol=2e-5, rtol=1e-4)


def test_an_answer_that_is_over_leaves_and_the_next_prompt_takes_its_place(llama):
    whole = greedy_answers(llama, PROMPTS, 12, **OPTIONS)
    ends = sorted({text[n % 5 + 1] for n, text in enumerate(whole) if len(text) > 6})
    expected = [greedy_answers(llama, [text], 12, stop=ends, progress=False)[0] for text in PROMPTS]
    with Passes(llama) as alone:
        for text in PROMPTS:
            greedy_answers(llama, [text], 12, stop=ends, progress=False)
    with Passes(llama) as together:
        assert greedy_answers(llama, PROMPTS, 12, stop=ends, batch_size=3, progress=False) == expected
    assert len({len(text) for text in expected}) > 2
    padding = sum(max(map(len, PROMPTS)) - len(text) for text in PROMPTS)
    assert together.n < alone.n
    assert together.tokens <= alone.tokens + padding  # no token of an answer that is over is run


def test_models_and_hooks_under_which_rows_cannot_come_and_go_are_told(llama):
    config = MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=4)
    wrapped = AutoModelForCausalLM.from_config(config).eval()
    wrapped.config.architectures = [type(wrapped).__name__]
    mamba = TransformerBridge.boot_transformers("m", hf_model=wrapped, tokenizer=byte_tokenizer(), device="cpu")
    assert lanes_for(mamba, 2, [], 4) is None
    assert lanes_for(llama, 2, [], 4) is not None
    with llama.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda tensor, hook: None)]):
        assert lanes_for(llama, 2, [], 4) is None
        seen = greedy_answers(llama, PROMPTS, 4, **OPTIONS)
    assert seen == greedy_answers(llama, PROMPTS, 4, **OPTIONS)


def test_attention_is_fused_only_where_no_hook_looks_into_it(llama):
    config = llama.original_model.config
    assert fused.can_fuse(llama)
    inside = Editor({Site(1, "attn_out"): make_editor()[0]})
    for editor, can in ((make_editor(), True), (inside, False)):
        with editor.attached(llama):
            assert fused.can_fuse(llama) is can
            llama(torch.tensor([[5, 6]]))
    assert not fused.can_fuse(build_bridge("llama", torch.bfloat16))
    with pytest.raises(KeyError, match="sdpa"), fused.fused(llama):
        raise KeyError(config._attn_implementation)
    assert config._attn_implementation == "eager"


def test_a_mask_over_one_batch_edits_that_batch(llama):
    texts = ["abc", "xyz", "q: "]
    assert len({len(token_ids(llama, text)) for text in texts}) == 1
    mask = torch.zeros(3, 4, dtype=torch.bool)
    editor = make_editor(strength=2.0).at_positions(mask)  # what is generated alone
    found = greedy_answers(llama, texts, 6, editor=editor, **OPTIONS)
    assert found == greedy_answers(
        llama, texts, 6, editor=make_editor(strength=2.0).at_positions("generated"), **OPTIONS
    )
    assert how_to_run(llama, editor, 8)[0] == 8
