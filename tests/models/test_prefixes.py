"""A beginning that texts share is run once, and nothing comes out differently."""

import warnings

import pytest
import torch
from conftest import build_bridge

from sea_lens import Activations, fit_sea
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.generate import greedy_answers
from sea_lens.models.log_probs import completion_log_probabilities
from sea_lens.models.tokens import token_ids

FEW_SHOT = "Answer with few words. Q: sea? A: blue. "
SHARING = [
    (FEW_SHOT + prompt, text) for prompt, text in (("Q: one", "yes it is"), ("Q: other", "no"), ("Q: x", "a b c"))
]


def tokens_run(model, run):
    """How many tokens the first block saw."""
    seen = []
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda tensor, hook: seen.append(tensor[..., 0].numel()))]):
        found = run()
    return found, sum(seen)


def random_editor(model):
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(20, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    return fit_sea(
        Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=model), ranks=4
    )


@pytest.mark.parametrize("position", [None, 5, len(FEW_SHOT) + 4])
def test_a_shared_prefix_is_run_once_and_changes_nothing(bridge, position):
    editor = random_editor(bridge)
    if position is not None:
        editor = editor.at_positions(position)
    plain = completion_log_probabilities(bridge, SHARING)
    with editor.attached(bridge):
        shared, few = tokens_run(bridge, lambda: completion_log_probabilities(bridge, SHARING, batch_size=2))
        alone, many = tokens_run(
            bridge, lambda: [completion_log_probabilities(bridge, [text], share_prefix=False)[0] for text in SHARING]
        )
    assert shared == pytest.approx(alone, abs=1e-5)
    assert shared != pytest.approx(plain, abs=1e-3)
    assert few < many - len(FEW_SHOT)


ASKED = [FEW_SHOT + prompt for prompt in ("Q: one", "Q: other", "Q: two", "Q: x", "Q: and the", "Q: red")]


@pytest.mark.parametrize("position", [None, 5, len(FEW_SHOT) + 8])
def test_answers_after_a_shared_prefix_are_those_of_each_prompt_alone(bridge, position):
    editor = random_editor(bridge)
    if position is not None:
        editor = editor.at_positions(position)
    options = {"max_new_tokens": 6, "stop": (), "progress": False}
    plain = [greedy_answers(bridge, [text], **options)[0] for text in ASKED]
    shared, few = tokens_run(bridge, lambda: greedy_answers(bridge, ASKED, share_prefix=True, batch_size=2, **options))
    assert shared == plain
    assert few <= 1 + len("".join(ASKED)) - 5 * len(FEW_SHOT) + 6 * (1 + 5)  # the beginning-of-sequence token is shared
    with editor.attached(bridge):
        edited = [greedy_answers(bridge, [text], **options)[0] for text in ASKED]
        assert greedy_answers(bridge, ASKED, share_prefix=True, **options) == edited
    assert edited != plain


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_answers_beyond_a_sliding_window_are_exact(architecture):
    model = build_bridge(architecture, sliding_window=16)
    options = {"max_new_tokens": 6, "stop": (), "progress": False}
    alone = [greedy_answers(model, [text], **options)[0] for text in ASKED]
    assert greedy_answers(model, ASKED, share_prefix=True, **options) == alone


def test_answers_that_end_early_leave_the_others_as_they_are(monkeypatch):
    model = build_bridge("llama")
    options = {"max_new_tokens": 6, "stop": (), "progress": False}
    said = [token_ids(model, answer)[1:] for answer in greedy_answers(model, ASKED, **options)]
    end = next(row[2] for row in said if any(row[2] not in other for other in said))
    monkeypatch.setattr(model.cfg, "eos_token_id", [end], raising=False)
    alone = [greedy_answers(model, [text], **options)[0] for text in ASKED]
    assert len({len(text) for text in alone}) > 1
    assert greedy_answers(model, ASKED, share_prefix=True, **options) == alone


def test_an_edit_by_the_published_rule_refuses_a_shared_prefix(llama):
    identity = torch.eye(32).repeat(3, 1, 1)
    basis = torch.linalg.qr(torch.randn(3, 32, 2, generator=torch.Generator().manual_seed(0))).Q
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        editor = read_published_editor(
            basis @ basis.mT, identity - basis.flip(0) @ basis.flip(0).mT, normalization="feature"
        )
    with editor.attached(llama), pytest.raises(InputError, match="share_prefix=False"):
        completion_log_probabilities(llama, SHARING)
    with editor.attached(llama):
        assert completion_log_probabilities(llama, SHARING, share_prefix=False)
