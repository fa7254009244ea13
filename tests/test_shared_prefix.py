"""A beginning that texts share is run once, and nothing comes out differently."""

import warnings

import pytest
import torch

from sea_lens import Activations, Editor, fit_sea
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.scoring import completion_log_probabilities

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


@pytest.mark.parametrize("position", [None, 5, len(FEW_SHOT) + 4])
def test_a_shared_prefix_is_run_once_and_changes_nothing(bridge, position):
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(20, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    activations = Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=bridge)
    editor = fit_sea(activations, ranks=4)
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


def test_an_edit_by_the_published_rule_refuses_a_shared_prefix(llama):
    identity = torch.eye(32).repeat(3, 1, 1)
    basis = torch.linalg.qr(torch.randn(3, 32, 2, generator=torch.Generator().manual_seed(0))).Q
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        editor = Editor.from_published_projections(
            basis @ basis.mT, identity - basis.flip(0) @ basis.flip(0).mT, normalisation="feature"
        )
    with editor.attached(llama), pytest.raises(InputError, match="share_prefix=False"):
        completion_log_probabilities(llama, SHARING)
    with editor.attached(llama):
        assert completion_log_probabilities(llama, SHARING, share_prefix=False)
