"""All answers of a benchmark at once give what each gives alone."""

import copy

import pytest
import torch
from conftest import build_bridge

from sea_lens import Activations, Questions, fit_sea
from sea_lens.errors import InputError
from sea_lens.models.log_probs import score_answers

FEW_SHOT = "Answer with few words. Q: sea? A: blue. "


def questions(prefix=FEW_SHOT):
    return Questions.from_lists(
        [prefix + prompt for prompt in ("Q: one", "Q: two", "Q: other", "Q: x")],
        [["yes", "yes it is", "yes it"], ["no"], ["b"], ["a b c", "a b d"]],
        [["no", "n"], [], ["a", "ab"], ["a b", "c", "c d", "e f g h"]],
    )


def random_editor(bridge, seed=0):
    generator = torch.Generator().manual_seed(seed)
    roles = [{layer: torch.randn(20, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    return fit_sea(
        Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=bridge), ranks=4
    )


def alone(bridge, asked, hooks=()):
    """One text, one forward pass, in float64 from the logits on: the oracle."""
    found = []
    for question in asked:
        prompt = bridge.tokenizer(question.prompt, add_special_tokens=False)["input_ids"]
        head = [bridge.tokenizer.bos_token_id] if bridge.cfg.default_prepend_bos else []
        for text in (*question.right, *question.wrong):
            ids = [*head, *bridge.tokenizer(f"{question.prompt} {text}", add_special_tokens=False)["input_ids"]]
            with torch.no_grad(), bridge.hooks(fwd_hooks=list(hooks)):
                logits = bridge(torch.tensor([ids]), use_cache=False)[0].double().log_softmax(-1)
            start = len(head) + len(prompt)
            found.append(sum(float(logits[place - 1, ids[place]]) for place in range(start, len(ids))))
    return found


def flat(scores):
    return scores.log_probabilities[scores.n_tokens > 0].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("position", [None, 0, len(FEW_SHOT) + 4])
def test_answers_together_are_answers_alone(bridge, batch_size, position):
    editor = random_editor(bridge)
    if position is not None:
        editor = editor.at_positions(position)
    plain = score_answers(bridge, questions(), batch_size=batch_size, progress=False)
    edited = score_answers(bridge, questions(), editor, batch_size=batch_size, progress=False)
    assert flat(plain) == pytest.approx(alone(bridge, questions()), abs=1e-5)
    assert flat(edited) == pytest.approx(alone(bridge, questions(), editor.fwd_hooks()), abs=1e-5)
    assert flat(edited) != pytest.approx(flat(plain), abs=1e-3)
    assert plain.n_tokens.tolist()[2] == [2, 2, 3, 0, 0, 0]  # bytes, with the space before the answer
    assert plain.is_right.sum(1).tolist() == [3, 1, 1, 2]
    assert plain.is_wrong.sum(1).tolist() == [2, 0, 2, 4]


def test_without_shared_prompts_the_same_comes_out(bridge):
    editor = random_editor(bridge)
    together = score_answers(bridge, questions(), editor, progress=False)
    apart = score_answers(bridge, questions(), editor, share_prompts=False, progress=False)
    assert flat(together) == pytest.approx(flat(apart), abs=1e-5)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_prompts_longer_than_a_sliding_window_are_exact(architecture):
    model = build_bridge(architecture, sliding_window=16)
    assert flat(score_answers(model, questions(), progress=False)) == pytest.approx(alone(model, questions()), abs=1e-5)


def test_a_prompt_is_run_once_whatever_its_answers(llama):
    seen = []
    with llama.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda tensor, hook: seen.append(tensor[..., 0].numel()))]):
        score_answers(llama, questions(), batch_size=1, progress=False)
    own = [len(f"Q: {name}") for name in ("one", "two", "other", "x")]
    tokens_of_rows = [len(" yes it i"), len(" n"), len(" n"), len(" "), len(" a b "), len(" c "), len(" e f g ")]
    assert sum(seen) <= 1 + len(FEW_SHOT) + sum(own) + sum(tokens_of_rows) + 2 * len(own)


def test_a_killed_run_goes_on(llama, tmp_path, monkeypatch):
    whole = score_answers(llama, questions(), batch_size=1, progress=False)
    seen = []

    def count(tensor, hook):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with llama.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", count)]), pytest.raises(KeyboardInterrupt):
        score_answers(llama, questions(), batch_size=1, folder=tmp_path, progress=False)
    kept = len(list(tmp_path.glob("*/scores-*.safetensors")))
    assert 0 < kept < 4
    resumed = score_answers(llama, questions(), batch_size=1, folder=tmp_path, progress=False)
    assert torch.equal(resumed.log_probabilities, whole.log_probabilities) or flat(resumed) == flat(whole)
    ran = []
    with llama.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda tensor, hook: ran.append(1))]):
        again = score_answers(llama, questions(), random_editor(llama), batch_size=1, folder=tmp_path, progress=False)
        ran_edited = len(ran)
        assert flat(score_answers(llama, questions(), batch_size=1, folder=tmp_path, progress=False)) == flat(whole)
    assert ran_edited > 0
    assert len(ran) == ran_edited
    assert flat(again) != flat(whole)


def test_an_unedited_model_is_left_as_it_was(llama):
    before = copy.deepcopy({name: value.clone() for name, value in llama.state_dict().items()})
    score_answers(llama, questions(), random_editor(llama), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    assert flat(score_answers(llama, questions(), progress=False)) == pytest.approx(alone(llama, questions()), abs=1e-5)


def test_wrong_input_is_refused(llama, without_type_checks):
    with pytest.raises(InputError, match="batch_size"):
        score_answers(llama, questions(), batch_size=0)
    with pytest.raises(InputError, match=r"Question 1 .* context is 128"):
        score_answers(llama, Questions.from_lists(["a", "b " * 70], [["c"], ["d"]], [["e"], ["f"]]))
    with pytest.raises(InputError, match="no tokens"):
        score_answers(llama, Questions.from_lists(["a"], [["c"]], [[""]]))
