"""Fitting site after site against the same by hand: TransformerLens's hooks below, then a fit of one site."""

import pytest
import torch
from conftest import run_command

import sea_lens as sl
from sea_lens.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")


@pytest.fixture(scope="module")
def rows():
    return sl.Demonstrations.from_lists(
        [f"Is {i} a number?" for i in range(6)], [f"yes, {i}" for i in range(6)], [f"no {i}!" for i in range(6)]
    )


def states_by_hand(model, texts, name, hooks):
    found = []
    for text in texts:
        with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, (name, lambda z, hook: found.append(z[0, -1].clone()))]):
            model(model.to_tokens(text), use_cache=False)
    return torch.stack(found)


def test_each_site_is_fitted_under_the_edits_before_it(llama, rows, tmp_path):
    method = sl.AcT(coverage=None)
    editor = sl.fit_in_sequence(llama, rows, method, layers=[0, 2], progress=False)
    hooks, h = [], torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    texts = [
        [f"{row.prompt} {answer}" for row in rows for answer in [getattr(row, side)]]
        for side in ("positive", "negative")
    ]
    for layer in (0, 2):
        name = f"blocks.{layer}.hook_resid_post"
        positive, negative = (states_by_hand(llama, side, name, hooks) for side in texts)
        alone = method.fit(sl.Activations.from_tensors(positive={layer: positive}, negative={layer: negative}))[layer]
        torch.testing.assert_close(editor[layer](h), alone(h), atol=1e-3, rtol=1e-3)
        hooks.append((name, lambda z, hook, edit=alone: edit(z)))
    at_once = method.fit(sl.collect_activations(llama, rows, [0, 2], progress=False))
    torch.testing.assert_close(at_once[0](h), editor[0](h), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(at_once[2](h), editor[2](h), atol=1e-2)  # below, something has moved
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert (again.fingerprint, again.card) == (editor.fingerprint, editor.card)
    assert again.card.in_sequence
    assert not at_once.card.in_sequence
    assert "fitted site after site on" in repr(again)
    assert again.card.reports.keys() == set(again.sites)
    with pytest.raises(InputError, match=r"takes the model. Call sl.fit_in_sequence"):
        sl.refit(again, sl.Activations.from_tensors(positive={0: h, 2: h}, negative={0: -h, 2: -h}))


def test_methods_that_choose_among_sites_are_refused(llama, rows):
    for method in (sl.SADI(), sl.AngularSteering(plane="shared")):
        with pytest.raises(InputError, match="chooses among all sites at once"):
            sl.fit_in_sequence(llama, rows, method)


def test_from_the_command_line(organism, demos, tmp_path):
    model, _ = organism
    code, out, _ = run_command(
        "fit", "act", "organism", demos, "--layers", "0,1", "--in-sequence", "--out", tmp_path / "e"
    )
    assert code == 0, out
    editor = sl.Editor.from_pretrained(tmp_path / "e")
    assert editor.card.in_sequence
    expected = sl.fit_in_sequence(model, sl.Demonstrations.from_jsonl(demos), sl.AcT(), layers=[0, 1], progress=False)
    assert expected.fingerprint == editor.fingerprint
    code, _, err = run_command("fit", "act", "--activations", tmp_path, "--in-sequence")
    assert code != 0
    assert "give a model and demonstrations" in err
