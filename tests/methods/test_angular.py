"""Angular steering against its published rule in float64: norms, angles, periods, gates, planes; and inside a tiny model."""

import math

import numpy as np
import pytest
import torch

import sea_lens as sl
from sea_lens.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
D = 10


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ONE, OTHER = normal(D, seed=1), normal(D, seed=2)
H = 3 * normal(50, D, seed=3)


def edit_to(angle, **options):
    return sl.AngularEdit.of(ONE, OTHER, angle, **options)


def plane_by_hand():
    b1 = ONE / ONE.norm()
    b2 = OTHER - (OTHER @ b1) * b1
    return b1, b2 / b2.norm()


@pytest.mark.parametrize("angle", [0.0, 37.0, 180.0, 300.0, -60.0])
def test_it_is_the_published_rule_and_keeps_the_norm(angle):
    b1, b2 = plane_by_hand()
    projector = torch.outer(b1, b1) + torch.outer(b2, b2)
    part, theta = H @ projector, math.radians(angle)
    expected = H - part + part.norm(dim=1, keepdim=True) * (math.cos(theta) * b1 + math.sin(theta) * b2)
    edited = edit_to(angle)(H)
    torch.testing.assert_close(edited, expected, rtol=1e-12, atol=1e-12)
    for strength in (0.3, 1.0, -2.0, 1.7):
        torch.testing.assert_close(edit_to(angle).scaled(strength)(H).norm(dim=1), H.norm(dim=1), rtol=1e-12, atol=0)
    reached = torch.atan2(edited @ b2, edited @ b1)
    torch.testing.assert_close(torch.remainder(reached - theta + 1, 2 * math.pi), torch.ones(50).double())
    torch.testing.assert_close(edit_to(angle)(edited), edited)  # the angle is absolute: once there, there
    across = torch.eye(D).double() - projector
    torch.testing.assert_close(edited @ across, H @ across)


def test_angles_have_a_period_and_strengths_go_a_share_of_the_shorter_way():
    for angle in (10.0, 200.0):
        assert torch.equal(edit_to(angle)(H), edit_to(angle + 360)(H))
        assert torch.equal(edit_to(angle)(H), edit_to(angle - 720)(H))
    b1, b2 = plane_by_hand()
    start = 2 * (math.cos(math.radians(150)) * b1 + math.sin(math.radians(150)) * b2)  # the shorter way to -150 is up
    half = edit_to(-150.0).scaled(0.5)(start)
    torch.testing.assert_close(half, -2 * b1)


def test_only_what_is_along_the_first_direction_is_turned_where_asked_and_nothing_without_a_part_in_the_plane():
    b1, _ = plane_by_hand()
    edited = edit_to(120.0, adaptive=True)(H)
    along = H @ b1 > 0
    assert 10 < along.sum() < 40
    assert torch.equal(edited, edit_to(120.0)(H).where(along[:, None], H))
    nothing = torch.zeros(2, D).double().requires_grad_()
    edited = edit_to(45.0)(nothing)
    edited.sum().backward()
    assert torch.equal(edited, nothing)
    assert nothing.grad.isfinite().all()
    exact = sl.AngularEdit(torch.eye(2, 4), 90.0)
    across = torch.tensor([[0.0, -0.0, 3.0, -4.0]])
    assert torch.equal(exact(across).view(torch.int32), across.view(torch.int32))


def sides(n=80, layers=(0, 1, 2), seed=0):
    """Differences along one direction by layer, which vary most along another."""
    found = {"positive": {}, "negative": {}}
    for layer in layers:
        mean = 2 * ONE / ONE.norm() + 0.3 * normal(D, seed=10 + layer)
        along = normal(n, 1, seed=20 + layer) * 3 * OTHER / OTHER.norm()
        base = normal(n, D, seed=30 + layer)
        found["positive"][layer] = base + mean + along + 0.1 * normal(n, D, seed=40 + layer + seed)
        found["negative"][layer] = base
    return sl.Activations.from_tensors(**found)


def same_direction(one, other):
    one, other = one.double(), other.double()
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) == pytest.approx(1, abs=1e-5)


def test_a_sites_own_plane_is_its_mean_difference_and_the_first_component_of_differences():
    data = sides()
    editor = sl.AngularSteering(angle=30.0).fit(data)
    for layer in (0, 1, 2):
        differences = (data.positive[layer] - data.negative[layer]).numpy()
        mean = differences.mean(0)
        _, vectors = np.linalg.eigh(np.cov(differences.T))
        component = vectors[:, -1] * np.sign(vectors[:, -1] @ mean)
        b1 = mean / np.linalg.norm(mean)
        b2 = component - (component @ b1) * b1
        same_direction(editor[layer].plane[0], torch.tensor(b1))
        same_direction(editor[layer].plane[1], torch.tensor(b2))
        h = normal(9, D)
        turned = sl.AngularEdit.of(torch.tensor(mean), torch.tensor(component), 30.0)(h)
        torch.testing.assert_close(editor[layer](h), turned, atol=1e-5, rtol=1e-5)


def test_a_shared_plane_is_the_likest_direction_and_the_first_component_of_all():
    data = sides()
    editor = sl.AngularSteering(plane="shared").fit(data)
    directions = np.stack([(data.positive[k] - data.negative[k]).mean(0).numpy() for k in (0, 1, 2)])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    b1 = directions[(directions @ directions.T).mean(1).argmax()]
    centered = directions - directions.mean(0)
    component = np.linalg.svd(centered)[2][0]
    component *= np.sign(component @ directions.mean(0))
    expected = sl.AngularEdit.of(torch.tensor(b1), torch.tensor(component), 0.0)
    for layer in (0, 1, 2):
        torch.testing.assert_close(editor[layer].plane.double(), expected.plane, atol=1e-6, rtol=1e-6)
    view = editor.at_layers([1]).scaled(0.5)
    assert sl.refit(view, data).fingerprint == view.fingerprint  # of all sites, though it edits one
    alone = data.at_sites([1])
    own, shared = (sl.AngularSteering(plane=plane).fit(alone) for plane in ("own", "shared"))
    assert torch.equal(own[1].plane, shared[1].plane)


def test_at_the_mean_difference_both_sides_come_out_alike_along_it():
    data = sides()
    edit = sl.AngularSteering(angle=0.0).fit(data)[1]
    for side in (data.positive[1], data.negative[1]):
        moved = edit(side) @ edit.plane.T.double()
        assert (moved[:, 0] > 0).all()
        torch.testing.assert_close(moved[:, 1], torch.zeros(80).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", ["resid_post", "ln1.hook_out", "ln2.hook_out"])
def test_on_a_model_what_is_read_is_turned_and_keeps_its_norm(llama, tmp_path, site):
    rows = {role: {layer: torch.randn(9, 32) for layer in (0, 1)} for role in ("positive", "negative")}
    data = sl.Activations.from_tensors(**rows, site=site, model=llama)
    editor = sl.AngularSteering(angle=70.0).fit(data)
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert again.fingerprint == editor.fingerprint
    assert "turns to 70 degrees" in repr(again)
    tokens, seen = torch.arange(6)[None] + 7, {}
    name = sl.Site(1, site).hook_name
    keep = [(name, lambda z, hook: seen.setdefault("edited", z))]
    with torch.no_grad():
        with again.at_layers([1]).attached(llama), llama.hooks(fwd_hooks=keep):
            edited = llama(tokens, use_cache=False)
        plain, cache = llama.run_with_cache(tokens)
    assert (edited - plain).abs().max() > 1e-3
    torch.testing.assert_close(seen["edited"].norm(dim=-1), cache[name].norm(dim=-1))
    torch.testing.assert_close(seen["edited"], editor[1](cache[name]))


def test_what_has_no_plane_is_refused():
    data = sides()
    for wrong, words in (
        ({"positive": data.positive, "negative": data.positive}, "are equal"),
        ({"positive": {0: torch.ones(5, D)}, "negative": {0: torch.zeros(5, D)}}, "do not vary"),
        ({"positive": {0: normal(1, D)}, "negative": {0: normal(1, D, seed=1)}}, "two demonstrations"),
    ):
        with pytest.raises(InputError, match=words):
            sl.AngularSteering().fit(sl.Activations.from_tensors(**wrong))
    mixed = {"blocks.0.hook_resid_post": normal(9, D), "blocks.0.attn.hook_z": normal(9, 8)}
    other = {name: rows + normal(*rows.shape, seed=5) for name, rows in mixed.items()}
    with pytest.raises(InputError, match="sites of one width"):
        sl.AngularSteering(plane="shared").fit(sl.Activations.from_tensors(positive=mixed, negative=other))
    with pytest.raises(InputError, match="must be orthonormal"):
        sl.AngularEdit(torch.ones(2, 4), 0.0)
    with pytest.raises(InputError, match="span no plane"):
        sl.AngularEdit.of(ONE, 2 * ONE, 0.0)
    with pytest.raises(InputError, match="finite"):
        edit_to(float("nan"))
