"""LEACE against concept-erasure 0.2.4, and against what it promises."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sea_lens import LEACE, Activations, Editor, refit
from sea_lens.errors import InputError


def data(n=400, d=12, seed=0, oblique=False):
    """Two classes. If oblique, their means differ most along a direction of much variance, and are told by one of little."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = (torch.randn(n, d, generator=generator, dtype=torch.float64) + 5 for _ in range(2))
    gap = torch.randn(d, generator=generator, dtype=torch.float64)
    if oblique:
        positive[:, 0] *= 10
        negative[:, 0] *= 10
        gap[:2] = torch.tensor([3.0, 0.3])
        gap[2:] = 0
    return Activations.from_tensors(positive={3: positive + gap}, negative={3: negative})


def together(given):
    x = torch.cat([given.positive[3], given.negative[3]])
    return x, torch.cat([torch.ones(len(x) // 2), torch.zeros(len(x) // 2)])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"shrinkage": False}, {"shrinkage": False, "constrain_cov_trace": False}),
        ({"tolerance": 0.3}, {"svd_tol": 0.3}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("n", "d", "oblique"), [(400, 12, False), (4000, 12, True), (40, 60, False)])
def test_it_is_concept_erasures(n, d, oblique, ours, theirs):
    erasure = pytest.importorskip("concept_erasure", reason="the oracle, concept-erasure 0.2.4, is not installed")
    given = data(n, d, oblique=oblique)
    x, z = together(given)
    expected = erasure.LeaceEraser.fit(x, z, **theirs)(x)
    found = LEACE(**ours).fit(given)[3](x)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(x.std()), rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"shrinkage": False}], ids=str)
def test_no_linear_classifier_tells_the_sides_apart_afterwards(settings):
    given = data()
    x, z = together(given)
    edit = LEACE(**settings).fit(given)[3]
    after = edit(x)
    assert after.var(0).sum() <= x.var(0).sum() * (1 + 1e-6)
    covariance = (after - after.mean(0)).T @ (z.double() - 0.5) / len(x)
    assert covariance.norm() < 1e-6
    assert LogisticRegression().fit(x, z).score(x, z) > 0.75
    assert LogisticRegression().fit(after, z).score(after, z) == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(after.mean(0), x.mean(0), atol=1e-5, rtol=1e-5)


def test_it_changes_activations_least_of_all_projections_that_erase():
    given = data(oblique=True)
    x, _ = together(given)
    ours = LEACE(shrinkage=False).fit(given)[3](x)
    gap = given.positive[3].mean(0) - given.negative[3].mean(0)
    rng = np.random.default_rng(0)
    precision = torch.linalg.inv(torch.cov(x.T))
    for _ in range(20):  # x - (reader . (x - mean)) gap erases the gap if reader . gap = 1
        reader = precision @ gap + 0.3 * (precision @ gap).norm() * torch.tensor(rng.standard_normal(12)) / 12**0.5
        reader = reader / (reader @ gap)
        other = x - ((x - x.mean(0)) @ reader)[:, None] * gap
        assert (other - x).square().sum() > (ours - x).square().sum()


def test_sides_that_do_not_differ_are_left_alone():
    side = torch.randn(50, 8)
    editor = LEACE().fit(Activations.from_tensors(positive={3: side}, negative={3: side.flip(0)}))
    assert editor.is_identity
    with pytest.raises(InputError, match="tolerance"):
        LEACE(tolerance=0.0)


def test_it_is_saved_loaded_and_fitted_again(tmp_path):
    given = data()
    editor = LEACE().fit(given)
    editor.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path)
    assert loaded.fingerprint == editor.fingerprint == refit(loaded, given).fingerprint
    x, _ = together(given)
    torch.testing.assert_close(refit(editor, given.swapped())[3](x), editor[3](x), atol=1e-5, rtol=1e-5)
