"""Activation transport against its published rule in float64, written out in numpy, and against POT in one dimension."""

import numpy as np
import ot
import pytest
import torch

import sea_lens as sl
from sea_lens.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
RNG = np.random.default_rng(0)


def activations(source, target):
    sides = {"negative": source, "positive": target}
    return sl.Activations.from_tensors(**{role: {1: torch.as_tensor(rows)} for role, rows in sides.items()})


def fitted(source, target, **settings):
    return sl.AcT(**settings).fit(activations(source, target))[1]


def by_hand(x, y, kind):
    """The published rule, column by column."""
    moved = []
    for a, b in zip(x.T, y.T, strict=True):
        m, n = a.mean(), b.mean()
        if kind == "linear":
            a_, b_ = np.sort(a) - m, np.sort(b) - n
            moved.append((omega := (a_ * b_).sum() / (a_**2).sum(), n - omega * m))
        else:
            omega = b.std(ddof=1) / a.std(ddof=1) if kind == "gaussian" else 1.0
            moved.append((omega, n - omega * m))
    return np.array(moved).T


def skewed(n=40, width=6):
    return RNG.gamma(2.0, 3.0, (n, width)).astype(np.float32), RNG.normal(2, 5, (n, width)).astype(np.float32)


def test_an_affine_target_gives_its_own_numbers_exactly():
    z = np.arange(16, dtype=np.float32)[:, None]
    edit = fitted(RNG.permutation(z), RNG.permutation(3 * z + 1))
    assert (edit.scale.item(), edit.offset.item()) == (3.0, 1.0)


@pytest.mark.parametrize("kind", ["linear", "gaussian", "mean"])
def test_it_is_the_published_rule_inside_the_range_and_the_identity_outside(kind):
    x, y = skewed()
    edit = fitted(x, y, transport=kind)
    omega, beta = by_hand(x.astype(float), y.astype(float), kind)
    np.testing.assert_allclose(edit.scale, omega, rtol=1e-6)
    np.testing.assert_allclose(edit.offset, beta, rtol=1e-5, atol=1e-5)
    h = RNG.normal(5, 8, (300, 6)).astype(np.float32)
    inside = (h > x.min(0)) & (h < x.max(0))
    assert 0.1 < inside.mean() < 0.9
    moved = edit.scaled(0.5)(torch.tensor(h)).numpy()
    np.testing.assert_allclose(moved, np.where(inside, 0.5 * h + 0.5 * (omega * h + beta), h), rtol=1e-5, atol=1e-4)
    assert np.array_equal(moved[~inside], h[~inside])
    ends = torch.tensor(np.stack([x.min(0), x.max(0)]))
    assert torch.equal(edit(ends), ends)  # the range is open


def test_the_linear_transport_is_the_least_squares_fit_of_pots_plan():
    x, y = skewed(25, 1)
    plan = ot.emd_1d(x[:, 0], y[:, 0])  # [source, target], a permutation over 25
    partner = plan.argmax(1)
    omega, beta = np.polyfit(x[:, 0], y[partner, 0], 1)
    edit = fitted(x, y)
    assert edit.scale.item() == pytest.approx(omega, rel=1e-5)
    assert edit.offset.item() == pytest.approx(beta, rel=1e-4)


def test_linear_becomes_gaussian_for_gaussian_data_and_a_shift_for_shifted_columns():
    gaps = []
    for n in (100, 10_000):
        x, y = RNG.normal(0, 1, (n, 8)), RNG.normal(2, 3, (n, 8))
        gaps.append(float((fitted(x, y).scale - fitted(x, y, transport="gaussian").scale).abs().max()))
    assert gaps[1] < 0.02 < 0.3 * gaps[0] + 0.02
    assert gaps[1] < gaps[0]
    x, _ = skewed()
    shifted = RNG.permutation(x + np.float32(3))
    linear, mean = fitted(x, shifted), fitted(x, shifted, transport="mean")
    torch.testing.assert_close(linear.scale, torch.ones(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(linear.offset, mean.offset, atol=1e-5, rtol=1e-5)


def test_an_order_that_is_reversed_is_not_seen():
    x = RNG.normal(0, 1, (50, 1))
    assert fitted(x, 5 - 3 * x).scale.item() > 2.5  # a transport has no pairs: row i of one side is no partner of row i


def test_constant_coordinates_stay_and_coverage_narrows_the_range():
    x, y = skewed(50, 3)
    x[:, 1], y[:, 2] = 0.1, 7.0
    for kind, still in (("linear", [1]), ("gaussian", [1, 2]), ("mean", [1, 2])):
        edit = fitted(x, y, transport=kind)
        assert (~edit.changed).nonzero().flatten().tolist() == still
    nearly = x.copy()
    nearly[0, 1] += 1e-5
    assert not fitted(nearly, y, transport="gaussian").changed[1]
    assert fitted(nearly, y, transport="gaussian", least_std=0.0).changed[1]
    narrow = fitted(x, y, coverage=0.8)
    np.testing.assert_allclose(narrow.low, np.quantile(x.astype(float), 0.1, axis=0), rtol=1e-6)
    np.testing.assert_allclose(narrow.high, np.quantile(x.astype(float), 0.9, axis=0), rtol=1e-6)
    everywhere = fitted(x, y, coverage=None)
    far = torch.full((1, 3), 1e5)
    torch.testing.assert_close(everywhere(far), far * everywhere.scale + everywhere.offset)


def test_there_and_back_is_where_it_was_inside_both_ranges():
    x, y = RNG.normal(0, 1, (60, 4)), RNG.normal(1, 2, (60, 4))
    data = activations(x.astype(np.float32), y.astype(np.float32))
    there = sl.AcT("gaussian", coverage=None).fit(data)
    back = sl.refit(there, data.swapped())
    h = torch.randn(20, 4)
    torch.testing.assert_close(back[1](there[1](h)), h, atol=1e-5, rtol=1e-5)


def test_on_a_model_every_token_is_transported_by_itself(llama, tmp_path):
    model = llama
    sides = {role: {1: torch.randn(9, 64) + 2 * (role == "positive")} for role in ("positive", "negative")}
    data = sl.Activations.from_tensors(**sides, site="mlp.hook_post", token="mean", model=model)
    editor = sl.AcT(coverage=None).fit(data)
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert again.fingerprint == editor.fingerprint
    assert "coordinates, each times" in repr(again)
    tokens, seen = torch.arange(6)[None] + 7, []
    name = "blocks.1.mlp.hook_post"
    with again.attached(model), model.hooks(fwd_hooks=[(name, lambda z, hook: seen.append(z))]):
        model(tokens)
    _, plain = model.run_with_cache(tokens)
    edit = editor.edits[sl.Site.of(name)]
    torch.testing.assert_close(seen[0], edit.scale * plain[name] + edit.offset)


def test_what_cannot_be_fitted_is_refused():
    for wrong, words in (({"coverage": 0.0}, "a share above 0"), ({"least_std": -1.0}, "at least 0")):
        with pytest.raises(InputError, match=words):
            sl.AcT(**wrong)
    with pytest.raises(InputError, match="two demonstrations at least"):
        fitted(np.ones((1, 3)), np.ones((1, 3)))
