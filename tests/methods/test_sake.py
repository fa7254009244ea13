"""Gaussian transport and SAKE against their oracles: dense formulas, POT, known covariances, a model."""

import numpy as np
import ot
import pytest
import torch
from conftest import build_bridge
from scipy.linalg import sqrtm

import sea_lens as sl
from sea_lens.editing.nearest import NearestEdit
from sea_lens.errors import InputError
from sea_lens.methods.sake import SITE
from sea_lens.methods.transport import gaussian_map
from sea_lens.models.passes import telling

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")


def samples(n, width, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) @ mix * scale + 3 * seed


def with_covariance(matrix, n=400):
    """Samples whose mean is 0 and whose covariance (divisor n) is this one, to rounding."""
    x = torch.randn(n, len(matrix), generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / n)
    white = x @ (vectors / values.sqrt()) @ vectors.T
    return white @ torch.tensor(np.real(sqrtm(matrix.numpy())))


def dense(found):
    return (
        torch.eye(len(found.source), dtype=torch.float64)
        + found.basis @ (found.inner - torch.eye(len(found.inner), dtype=torch.float64)) @ found.basis.T
    )


# --- the map -----------------------------------------------------------------------------------------------------------


def test_commuting_covariances_have_ratios_of_standard_deviations():
    source, target = with_covariance(torch.diag(torch.tensor([4.0, 1]).double())), None
    target = with_covariance(torch.diag(torch.tensor([1.0, 9]).double()))
    np.testing.assert_allclose(dense(gaussian_map(source, target, eps=1e-12)), np.diag([0.5, 3]), atol=1e-9)


def test_the_source_comes_out_with_the_targets_mean_and_covariance():
    source, target = samples(60, 7, 1), samples(50, 7, 2)
    found = gaussian_map(source, target, eps=1e-9)
    a = dense(found)
    np.testing.assert_allclose(a, a.T, atol=1e-12)
    moved = found(source)
    np.testing.assert_allclose(moved.mean(0), target.mean(0), rtol=1e-9)
    centered, wanted = moved - moved.mean(0), target - target.mean(0)
    np.testing.assert_allclose(centered.T @ centered / 60, wanted.T @ wanted / 50, rtol=1e-6, atol=1e-6)
    back = gaussian_map(target, source, eps=1e-9)
    np.testing.assert_allclose(a @ dense(back), np.eye(7), atol=1e-6)


@pytest.mark.parametrize(("n", "width", "eps"), [(12, 40, 0.01), (60, 7, 0.5), (30, 30, 0.1)])
def test_the_thin_map_is_the_dense_one_and_pots(n, width, eps):
    source, target = samples(n, width, 1, 0.3), samples(n, width, 2, 0.3)
    found = gaussian_map(source, target, eps=eps)
    hs, ht = source - source.mean(0), target - target.mean(0)
    cs, ct = ((h.T @ h / n + eps * torch.eye(width)).numpy() for h in (hs, ht))
    root = np.real(sqrtm(cs))
    inverse = np.linalg.inv(root)
    by_hand = inverse @ np.real(sqrtm(root @ ct @ root)) @ inverse
    np.testing.assert_allclose(dense(found), by_hand, atol=1e-8)
    pot = ot.da.LinearTransport(reg=eps).fit(Xs=source.numpy(), Xt=target.numpy())
    np.testing.assert_allclose(found(source), pot.transform(Xs=source.numpy()), atol=1e-8)
    edit = found.edit()
    np.testing.assert_allclose(edit(source.float()), found(source).float(), rtol=1e-4, atol=1e-4)
    assert edit.rank <= 2 * n - 2


def test_equal_covariances_give_a_shift_and_the_simpler_kinds_are_what_they_say():
    source = samples(20, 5, 1)
    np.testing.assert_allclose(dense(gaussian_map(source, source + 2)), np.eye(5), atol=1e-9)
    target = samples(20, 5, 2)
    mean = gaussian_map(source, target, kind="mean")
    torch.testing.assert_close(mean(source), source + target.mean(0) - source.mean(0))
    diagonal = dense(gaussian_map(source, target, kind="diagonal", eps=1e-9))
    by_hand = target.std(0, correction=0) / source.std(0, correction=0)
    np.testing.assert_allclose(diagonal, np.diag(by_hand), rtol=1e-6)


def test_directions_without_a_source_have_large_gains_which_can_be_limited():
    source, target = torch.zeros(20, 2).double(), torch.zeros(20, 2).double()
    source[:, 0], target[:, 0] = torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 20)
    target[:, 1] = torch.tensor([3.0, -3.0] * 10)
    assert float(gaussian_map(source, target, eps=0.01).gains.max()) == pytest.approx(np.sqrt(9.01 / 0.01), rel=0.02)
    limited = gaussian_map(source, target, eps=0.01, most=4.0).gains
    assert float(limited.max()) == pytest.approx(4)
    assert float(limited.min()) >= 0.25


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": torch.ones(1, 3)}, "two samples at least"),
        ({"eps": 0.0}, "can be singular without it"),
        ({"most": 0.5}, "1 at least"),
    ],
)
def test_what_has_no_map_is_refused(given, words):
    settings = {"source": torch.randn(5, 3), "target": torch.randn(5, 3), **given}
    with pytest.raises(InputError, match=words):
        gaussian_map(**settings)


# --- facts ------------------------------------------------------------------------------------------------------------


def fact(center, shift, n=40, width=32, seed=0):
    """Prompts around a center, to be moved by a shift."""
    generator = torch.Generator().manual_seed(seed)
    source = center + 0.1 * torch.randn(n, width, generator=generator)
    target = center + shift + 0.1 * torch.randn(n, width, generator=generator)
    return sl.Activations.from_tensors(negative={SITE: source}, positive={SITE: target})


def test_a_fact_is_moved_inside_its_radius_and_nothing_else_by_a_bit():
    one, other = torch.zeros(32), torch.zeros(32)
    one[0], other[1] = 9.0, 9.0
    shift = torch.zeros(32)
    shift[2] = 5.0
    editors = [sl.SAKE().fit(fact(one, shift, seed=1)), sl.SAKE().fit(fact(other, -shift, seed=2))]
    both = sl.join_facts(editors)
    edit = both.edits[SITE]
    assert isinstance(edit, NearestEdit)
    points = torch.stack([one, other, torch.zeros(32), 3 * one])
    assert edit.chosen(points).tolist() == [0, 1, -1, -1]
    moved = edit(points)
    assert float((moved[0] - one)[2]) == pytest.approx(5, abs=0.3)
    assert float((moved[1] - other)[2]) == pytest.approx(-5, abs=0.3)
    assert torch.equal(moved[2:], points[2:])
    assert torch.equal(both.scaled(0.0).edits[SITE](points), points)
    alone = editors[0].edits[SITE]
    assert alone.chosen(points).tolist() == [0, -1, -1, -1]
    everywhere = sl.SAKE(scope=None).fit(fact(one, shift, seed=1)).edits[SITE]
    assert everywhere.chosen(points).tolist() == [0, 0, 0, 0]


def test_the_radius_holds_its_share_of_held_out_prompts():
    activations = fact(torch.ones(32), torch.ones(32), n=500)
    held_out = activations.negative[SITE][4::5]
    for scope in (0.5, 0.9):
        edit = sl.SAKE(scope=scope).fit(activations).edits[SITE]
        assert float((edit.chosen(held_out) == 0).float().mean()) == pytest.approx(scope, abs=0.011)


def test_wrong_sites_and_too_few_prompts_are_refused():
    sides = {role: {3: torch.randn(20, 4)} for role in ("positive", "negative")}
    with pytest.raises(InputError, match=r"SAKE edits unembed.hook_in.*Collect them with sl.collect_fact"):
        sl.SAKE().fit(sl.Activations.from_tensors(**sides))
    with pytest.raises(InputError, match="give ten at least, or scope=None"):
        sl.SAKE().fit(fact(torch.zeros(32), torch.ones(32), n=9))
    with pytest.raises(InputError, match="scope is a share"):
        sl.SAKE(scope=1.5)
    for wrong in ({"eps": 0.0}, {"most": 0.5}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
            sl.SAKE(**wrong)
    with pytest.raises(InputError, match="joined from editors of SAKE"):
        sl.join_facts([sl.MeanDifference().fit(sl.Activations.from_tensors(**sides))])


def test_on_a_model_the_prompt_says_the_new_object_and_others_stay_as_they_are(tmp_path):
    model = build_bridge("llama")
    prompts = [f"{name} sea is {word}" for name in "abcdefghijkl" for word in ("the", "a")]
    activations = sl.collect_fact(model, prompts, old="big", new="far", batch_size=5)
    assert activations.n == 2 * len(prompts)
    by_hand = []
    for text in (prompts[3], f"Repeat this sentence: '{prompts[3]} big'. {prompts[3]}"):
        _, cache = model.run_with_cache(model.to_tokens(text))
        by_hand.append(cache["unembed.hook_in"][0, -1])
    torch.testing.assert_close(
        activations.negative[SITE][[3, 3 + len(prompts)]], torch.stack(by_hand), rtol=0, atol=1e-5
    )
    _, cache = model.run_with_cache(
        model.to_tokens(f"Do not mention 'big'. Repeat this sentence: '{prompts[3]} far'. {prompts[3]}")
    )
    torch.testing.assert_close(activations.positive[SITE][3], cache["unembed.hook_in"][0, -1], rtol=0, atol=1e-5)
    editor = sl.SAKE(scope=1.0).fit(activations)
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert again.fingerprint == editor.fingerprint
    assert "within" in repr(again)
    inside, outside = model.to_tokens(prompts[0]), model.to_tokens("9 9 9")
    with torch.no_grad():
        plain = [model(tokens) for tokens in (inside, outside)]
        with again.attached(model):
            edited = [model(tokens) for tokens in (inside, outside)]
    assert not torch.equal(edited[0][:, -1], plain[0][:, -1])
    assert torch.equal(edited[0][:, :-1], plain[0][:, :-1])  # only the token that is predicted from
    assert torch.equal(edited[1], plain[1])
    refitted = sl.refit(editor, activations.swapped())
    assert refitted.card.method == "sake"


# --- objects of several tokens ----------------------------------------------------------------------------------------

OBJECT = "far"  # four tokens here: a space, and a letter each


@pytest.fixture(scope="module")
def several():
    """A model, the prompts of a fact, its activations for three tokens and the editor."""
    model = build_bridge("llama")
    prompts = [f"{name} sea is {word}" for name in "abcdefghijkl" for word in ("the", "a")]
    activations = sl.collect_fact(model, prompts, old="big", new=OBJECT, tokens=3, batch_size=7)
    return model, prompts, activations, sl.SAKE(scope=1.0, tokens=3).fit(activations)


def test_further_tokens_are_collected_where_each_is_predicted(several):
    model, prompts, activations, _ = several
    assert (activations.n, activations.width) == (2 * len(prompts), 3 * model.cfg.d_model)
    for side, before in (
        ("negative", ""),
        ("positive", f"Do not mention 'big'. Repeat this sentence: '{prompts[4]} far'. "),
    ):
        ids = model.to_tokens(f"{before}{prompts[4]} {OBJECT}")
        _, cache = model.run_with_cache(ids)
        start = len(model.to_tokens(f"{before}{prompts[4]}")[0]) - 1
        by_hand = cache["unembed.hook_in"][0, start : start + 3].flatten()
        torch.testing.assert_close(activations[side][SITE][4], by_hand, rtol=0, atol=1e-5)
    one = sl.collect_fact(model, prompts, old="big", new=OBJECT, batch_size=32)
    torch.testing.assert_close(
        activations.negative[SITE][:, : model.cfg.d_model], one.negative[SITE], rtol=0, atol=1e-5
    )


def test_each_token_has_its_map_and_the_prompt_decides_for_all(several, tmp_path):
    model, prompts, activations, editor = several
    width, edit = model.cfg.d_model, editor.edits[SITE]
    negative, positive = (activations[role][SITE].split(width, 1) for role in ("negative", "positive"))
    held_out = torch.arange(activations.n) % 5 == 4
    for number in range(3):
        alone = gaussian_map(negative[number][~held_out], positive[number]).edit()
        at = torch.full((activations.n,), number)
        assert edit.chosen(negative[number][held_out], at[held_out]).tolist() == [number] * int(held_out.sum())
        torch.testing.assert_close(edit(negative[number][4:5], at[:1]), alone(negative[number][4:5]))
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert again.fingerprint == editor.fingerprint
    assert "the first 2 of its answer" in str(again.where)
    whole = model.to_tokens(f"{prompts[0]} {OBJECT}.")
    length = len(model.to_tokens(prompts[0])[0])
    with torch.no_grad():
        plain = model(whole)
        with again.attached(model), telling(model, length):
            edited = model(whole)
        with again.attached(model), telling(model, length - 2):  # another prompt, which ends far from the fact
            other = model(whole)
    changed = (edited != plain).any(-1)[0].tolist()
    assert changed == [length - 1 <= place < length + 2 for place in range(whole.shape[1])]
    assert torch.equal(other, plain)


def test_batches_padding_and_the_cache_do_not_matter_to_the_latch(several):
    model, prompts, _, editor = several
    asked = [prompts[0], "9 9", "another text that is longer", prompts[5]]
    plain, together = (sl.generate(model, asked, one, max_new_tokens=5, batch_size=4) for one in (None, editor))
    assert together == [sl.generate(model, [one], editor, max_new_tokens=5)[0] for one in asked]
    assert [one != other for one, other in zip(plain, together, strict=True)][1:3] == [False, False]
    with editor.attached(model), torch.no_grad():
        rows = [model.to_tokens(text)[0] for text in asked]
        longest = max(map(len, rows))
        padded = torch.stack([torch.cat([row.new_full((longest - len(row),), 1), row]) for row in rows])
        mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
        options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
        batched = model.original_model.generate(padded, **options)
        uncached = model.original_model.generate(padded, **options, use_cache=False)
        assert torch.equal(batched, uncached)
        for row, found in zip(rows, batched, strict=True):
            own = model.original_model.generate(row[None], max_new_tokens=4, do_sample=False)
            assert torch.equal(own[0, len(row) :], found[longest:])


def test_facts_of_several_tokens_are_joined_and_fitted_anew(several):
    model, prompts, activations, editor = several
    other = sl.collect_fact(model, [f"{text} not" for text in prompts], old="big", new="old")
    both = sl.join_facts([editor, sl.SAKE(scope=1.0).fit(other)])
    assert (both.where.tokens, len(both.where.centers), both.edits[SITE].rank) == (3, 2, both.edits[SITE].rank)
    assert both.edits[SITE].chosen(activations.negative[SITE][:1, : model.cfg.d_model]).tolist() == [0]
    assert both.card.n_demonstrations == 2 * activations.n
    with pytest.raises(InputError, match="no method that is registered"):
        sl.refit(both, activations)
    swapped = sl.refit(editor, activations.swapped())
    means = activations.positive[SITE][torch.arange(activations.n) % 5 != 4, : model.cfg.d_model].double().mean(0)
    torch.testing.assert_close(swapped.where.centers[0].double(), means, rtol=1e-5, atol=1e-5)
    assert sl.refit(editor, activations).fingerprint == editor.fingerprint
    assert sl.refit(editor, activations.shuffled(0)).where.tokens == 3
    nothing = sl.generate(model, [prompts[0]], editor.scaled(0.0), max_new_tokens=4)
    assert nothing == sl.generate(model, [prompts[0]], max_new_tokens=4)


def test_the_number_of_tokens_must_be_that_of_the_activations(several):
    model, prompts, activations, editor = several
    with pytest.raises(InputError, match=r"SAKE\(tokens=1\) is fitted on .* these have 3 tokens"):
        sl.SAKE().fit(activations)
    with pytest.raises(InputError, match="'far' has 4 tokens here"):
        sl.collect_fact(model, prompts, old="big", new="far", tokens=5)
    with pytest.raises(InputError, match="two different objects"):
        sl.collect_fact(model, prompts, old="far", new=" far ")
    with pytest.raises(InputError, match="tokens is a number"):
        sl.SAKE(tokens=0)
    with pytest.raises(InputError, match="editors of one model"):
        sl.join_facts([editor, sl.SAKE().fit(fact(torch.zeros(32), torch.ones(32)))])
