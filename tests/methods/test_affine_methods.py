"""Methods that are affine maps, each against its published rule written out here, in float64."""

import warnings

import numpy as np
import pytest
import torch
from methods.oracles import layers_of
from methods.test_every_method import PLANTED, close, fit, given, probes, rows
from tiny import build_bridge

from sea_lens import (
    ACE,
    LEACE,
    Activations,
    AffineEdit,
    Conceptor,
    ConceptorSteering,
    Demonstrations,
    DirectionalAblation,
    Editor,
    GaussianTransport,
    MeanDifference,
    MidSteer,
    PCADifference,
    Site,
    collect_activations,
    refit,
)
from sea_lens.editing.one_sided import OneSidedEdit
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.methods.transport import gaussian_map

LAYER = 2


def spd(d, seed):
    root = np.random.default_rng(seed).standard_normal((d, d))
    return root @ root.T + 0.1 * np.eye(d)


def drawn(n, covariance, mean, seed):
    """Samples whose own mean and covariance (divisor n) are exactly these."""
    x = np.random.default_rng(seed).standard_normal((n, len(covariance)))
    x = x - x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / n)).T
    return torch.tensor(x @ np.linalg.cholesky(covariance).T + mean)


# --- PCA of differences ----------------------------------------------------------------------------------------------


def test_centering_differences_removes_what_they_have_in_common():
    """repeng's default, by its own rule: sklearn's PCA of the differences, where noise is larger than the signal."""
    from sklearn.decomposition import PCA

    generator = torch.Generator().manual_seed(0)
    signal, noise = torch.eye(12, dtype=torch.float64)[:2]
    pairs = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    differences = 3 * signal + 2 * torch.randn(200, 1, generator=generator, dtype=torch.float64) * noise
    data = given([pairs, pairs + differences, pairs])
    found = {each: fit(PCADifference(each, length="unit"), data)[LAYER].shift for each in ("pca_center", "pca_diff")}
    theirs = torch.tensor(PCA(n_components=1).fit(differences.numpy()).components_[0])
    assert abs(theirs @ found["pca_diff"].double()) > 1 - 1e-6
    assert abs(found["pca_diff"][0]) < 0.05
    assert found["pca_center"][0] > 0.99
    # repeng's pca_center: both sides about the midpoints of their pairs.
    middle = (data.positive[LAYER] + data.negative[LAYER]) / 2
    centered = torch.cat([data.positive[LAYER] - middle, data.negative[LAYER] - middle])
    theirs = torch.tensor(PCA(n_components=1).fit(centered.numpy()).components_[0])
    assert abs(theirs @ found["pca_center"].double()) > 1 - 1e-6


def test_the_length_of_a_shift():
    data = given(rows())
    positive, negative = data.positive[LAYER], data.negative[LAYER]
    wanted = {
        "difference": (positive.mean(0) - negative.mean(0)).norm(),
        "unit": torch.tensor(1.0),
        "activations": negative.norm(dim=1).mean(),
    }
    for length, expected in wanted.items():
        for method in (MeanDifference(length=length), PCADifference(length=length)):
            close(fit(method, data)[LAYER].shift.norm().double(), expected.double(), 1e-6)
    restored = fit(PCADifference(restore_norm=True), data)[LAYER]
    torch.testing.assert_close(restored(probes()).norm(dim=1), probes().norm(dim=1))
    with pytest.raises(InputError, match="Give one of them"):
        MeanDifference(normalize=True, length="activations")


# --- ACE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0, -2.5])
def test_every_token_ends_at_the_level(alpha):
    data = given(rows())
    mean = data.negative[LAYER].mean(0)
    r = data.positive[LAYER].mean(0) - mean
    edit = fit(ACE(alpha), data)[LAYER]
    h = 10 * probes()
    level = (edit(h) @ r) / r.square().sum() - (mean @ r) / r.square().sum()
    torch.testing.assert_close(level, torch.full((25,), alpha).double(), atol=1e-6, rtol=1e-6)
    along = ((h - mean) @ r / r.square().sum())[:, None]
    close(edit(h), h - along * r + alpha * r, 1e-6)
    close(edit.scaled(0.5)(h), (h + edit(h)) / 2, 1e-6)


def test_midway_it_is_the_orthogonal_eraser_of_concept_erasure():
    erasure = pytest.importorskip("concept_erasure", reason="the oracle, concept-erasure 0.2.4, is not installed")
    data = given(rows())
    both, labels = torch.cat([data.positive[LAYER], data.negative[LAYER]]), torch.arange(80) < 40
    theirs = erasure.LeaceEraser.fit(both, labels.double(), method="orth", shrinkage=False, constrain_cov_trace=False)
    close(fit(ACE(0.5), data)[LAYER](probes()), theirs(probes()), 1e-5)


# --- MidSteer and LEACE ----------------------------------------------------------------------------------------------


def test_midsteer_switches_one_concept_for_the_other_at_the_least_cost():
    data = given(rows(200))
    neutral = data.neutral[LAYER]
    mean = neutral.mean(0)
    s, t = data.negative[LAYER].mean(0) - mean, data.positive[LAYER].mean(0) - mean
    sigma = torch.cov(neutral.T, correction=0)
    g = torch.linalg.solve(sigma, s)
    g = g / (s @ g)
    edit = fit(MidSteer(shrinkage=False), data)[LAYER]
    close(edit(probes()), probes() - ((probes() - mean) @ g)[:, None] * (s - t), 1e-5)
    close(edit(mean + s), mean + t, 1e-5)
    blind = torch.linalg.svd(g[None]).Vh[1:] @ sigma  # what g does not read
    blind = blind - (blind @ g)[:, None] * s
    close(edit(mean + blind), mean + blind, 1e-5)
    cost = (edit(neutral) - neutral).square().sum()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):  # other maps that take s to t
        other = g + 0.3 * g.norm() * torch.randn(len(g), generator=generator, dtype=torch.float64)
        other = other / (s @ other)
        assert (((neutral - mean) @ other)[:, None] * (s - t)).square().sum() > cost


def test_midsteer_that_writes_nothing_is_leace_of_the_concept():
    """Of two classes about a neutral mean halfway between, with the neutral covariance that of both together."""
    data = given(rows(300))
    positive, negative = data.positive[LAYER], data.negative[LAYER]
    both = torch.cat([positive, negative])
    data = given([both, torch.cat([positive, positive]), torch.cat([negative, negative])])
    erased = fit(MidSteer(switch=False, shrinkage=False), data)[LAYER]
    close(erased(probes()), fit(LEACE(shrinkage=False), given([positive, positive, negative]))[LAYER](probes()), 1e-4)


def test_midsteer_clipped_leaves_tokens_without_the_concept_alone(tmp_path):
    data = given(rows(200))
    edit, clipped = (fit(MidSteer(clip=clip), data)[LAYER] for clip in (False, True))
    holds = (probes() - edit.center) @ edit.right[:, 0].double() > 0
    assert 0 < holds.sum() < 25
    assert torch.equal(clipped(probes())[~holds], probes()[~holds])
    assert torch.equal(clipped(probes())[holds], edit(probes())[holds])
    assert not torch.equal(clipped.scaled(2.0)(probes())[holds], edit(probes())[holds])
    fit(MidSteer(clip=True), data).save_pretrained(tmp_path)
    assert torch.equal(Editor.from_pretrained(tmp_path)[LAYER](probes()), clipped(probes()))
    with pytest.raises(InputError, match="reads one direction"):
        OneSidedEdit(AffineEdit.of_shift(torch.ones(3)))


def test_midsteer_refuses_a_concept_that_neutral_activations_do_not_reach():
    neutral, positive, negative = rows(5)
    with pytest.raises(InputError, match="do not vary along the negative concept"):
        fit(MidSteer(shrinkage=False), given([neutral[:1].expand(5, 12), positive, negative]))


def test_leace_in_closed_form_whether_the_covariance_is_total_or_within():
    data = given(rows(500))
    x = [data.positive[LAYER], data.negative[LAYER]]
    delta, mean = x[0].mean(0) - x[1].mean(0), torch.cat(x).mean(0)
    edit = fit(LEACE(shrinkage=False), data)[LAYER]
    for sigma in (torch.cov(torch.cat(x).T), torch.cov(torch.cat([side - side.mean(0) for side in x]).T)):
        g = torch.linalg.solve(sigma, delta)
        close(edit(probes()), probes() - ((probes() - mean) @ (g / (g @ delta)))[:, None] * delta, 1e-5)
    close(edit(x[0]).mean(0), edit(x[1]).mean(0), 1e-6)


# --- Gaussian transport ----------------------------------------------------------------------------------------------


def test_transport_takes_one_gaussian_to_the_other():
    source, target = drawn(60, spd(5, 0), np.arange(5.0), 1), drawn(60, spd(5, 2), -np.ones(5), 3)
    found = gaussian_map(source, target, eps=1e-13)
    a = found.basis @ found.inner @ found.basis.T
    cs, ct = (torch.cov(side.T, correction=0) for side in (source, target))
    close(a @ cs @ a, ct, 1e-9)
    close(found(found.source), found.target, 1e-12)
    data = Activations.from_tensors(positive={LAYER: target}, negative={LAYER: source})
    edit = fit(GaussianTransport(ridge=1e-9, most=None), data)[LAYER]
    close(edit(source), found(source), 1e-5)
    moved = edit(source)
    close(torch.cov(moved.T, correction=0), ct, 1e-5)
    back = fit(GaussianTransport(ridge=1e-9, most=None), data.swapped())[LAYER]
    close(back(moved), source, 1e-4)


def test_transport_that_is_known():
    commuting = drawn(40, np.diag([4.0, 1.0]), 0, 1), drawn(40, np.diag([1.0, 9.0]), 0, 2)
    found = gaussian_map(*commuting, eps=1e-13)
    close(found.basis @ found.inner @ found.basis.T, torch.diag(torch.tensor([0.5, 3.0]).double()), 1e-9)
    base = rows()[0]
    shift = fit(GaussianTransport(), given([base, base + 3 * PLANTED, base]))[LAYER]
    close(shift(probes()), probes() + 3 * PLANTED, 1e-6)
    capped = Activations.from_tensors(positive={LAYER: 100 * base}, negative={LAYER: base})
    report = fit(GaussianTransport(most=3.0), capped).card.reports[Site(LAYER)]
    assert (report["smallest_gain"], report["largest_gain"]) == pytest.approx((3.0, 3.0))


def test_transport_in_principal_components_leaves_the_rest_alone():
    data = given(rows())
    positive, negative = data.positive[LAYER], data.negative[LAYER]
    both = torch.cat([positive, negative])
    p = torch.linalg.svd(both - both.mean(0)).Vh[:2].T
    ridge = 1e-2 * torch.cat([side - side.mean(0) for side in (positive, negative)]).square().mean()
    inside = gaussian_map(negative @ p, positive @ p, eps=float(ridge))
    expected = probes() + (inside(probes() @ p) - probes() @ p) @ p.T
    edit = fit(GaussianTransport(rank=2, most=None), data)[LAYER]
    close(edit(probes()), expected, 1e-5)
    close(edit(probes()) - edit(probes()) @ p @ p.T, probes() - probes() @ p @ p.T, 1e-5)
    whole, all_of_them = (fit(GaussianTransport(rank=rank), data)[LAYER](probes()) for rank in (None, 12))
    close(all_of_them, whole, 1e-5)
    for wrong in ({"rank": 0}, {"ridge": 0.0}, {"most": 0.5}):
        with pytest.raises(InputError):
            GaussianTransport(**wrong)
    with pytest.raises(InputError, match="two demonstrations at least"):
        fit(GaussianTransport(), given([side[:1] for side in rows()]))


# --- Conceptors ------------------------------------------------------------------------------------------------------


def dense(r, aperture):
    return r @ np.linalg.inv(r + aperture**-2 * np.eye(len(r)))


def same(conceptor, expected):
    np.testing.assert_allclose(conceptor.matrix.numpy(), expected, atol=1e-8)


def test_a_conceptor_has_the_eigenvalues_it_should():
    x = drawn(30, spd(6, 0), 1.0, 1)
    r = (x.T @ x / 30).numpy()
    found = Conceptor.of(x, 0.7)
    same(found, dense(r, 0.7))
    squares = np.linalg.eigvalsh(r)
    np.testing.assert_allclose(sorted(found.eigenvalues.tolist()), sorted(squares / (squares + 0.7**-2)))
    assert found.quota == pytest.approx(np.trace(dense(r, 0.7)) / 6)
    few = x[:3]  # spans three of six directions
    span = torch.linalg.qr(few.T).Q
    same(Conceptor.of(few, 1e6), span @ span.T)
    same(Conceptor.of(few, 1e-6), np.zeros((6, 6)))
    with pytest.raises(InputError, match="aperture"):
        Conceptor.of(x, 0.0)


def test_conceptors_combine_as_boole_has_it():
    r, s = spd(6, 0), spd(6, 1)
    c, b = (Conceptor.of(drawn(30, matrix, 0.0, seed), 0.7) for seed, matrix in enumerate((r, s)))
    identity = np.eye(6)
    same(~c, identity - dense(r, 0.7))
    same(c & b, np.linalg.inv(np.linalg.inv(dense(r, 0.7)) + np.linalg.inv(dense(s, 0.7)) - identity))
    same(c | b, dense(r + s, 0.7))  # what is in either: the conceptor of both correlations together
    same(~(~c), dense(r, 0.7))
    same(c & b, (b & c).matrix)
    flat = drawn(30, np.eye(6), 0.0, 5)
    plane, line, other = (
        Conceptor.of(flat[:, : len(axes)] @ torch.eye(6).double()[axes], 1e6) for axes in ([0, 1], [1], [2])
    )
    same(plane & line, line.matrix)
    same(plane & other, np.zeros((6, 6)))
    same(plane & ~line, np.diag([1.0, 0, 0, 0, 0, 0]))
    same(line | other, np.diag([0.0, 1, 1, 0, 0, 0]))
    with pytest.raises(InputError, match="one width"):
        _ = plane & Conceptor.of(flat[:, :3], 1.0)


@pytest.mark.parametrize("of", ["positive", "not_negative", "positive_and_not_negative"])
def test_conceptor_steering_multiplies(of):
    data = given(rows())
    r, s = (side.T @ side / len(side) for side in (data.positive[LAYER].numpy(), data.negative[LAYER].numpy()))
    identity = np.eye(12)
    c, b = dense(r, 2.0), identity - dense(s, 2.0)
    both = np.linalg.inv(np.linalg.inv(c) + np.linalg.inv(b) - identity)
    expected = {"positive": c, "not_negative": b, "positive_and_not_negative": both}[of]
    edit = fit(ConceptorSteering(2.0, 0.8, of), data)[LAYER]
    close(edit(probes()), 0.8 * probes() @ torch.tensor(expected), 1e-5)
    restored = fit(ConceptorSteering(2.0, 0.8, of, restore_norm=True), data)[LAYER](probes())
    close(restored.norm(dim=1), probes().norm(dim=1), 1e-5)


# --- Directional ablation --------------------------------------------------------------------------------------------


def orthogonalized(model, unit):
    """The model with every matrix that writes to the residual stream made blind: `W - u u^T W`."""
    hf = model.original_model
    with torch.no_grad():
        hf.model.embed_tokens.weight -= torch.outer(hf.model.embed_tokens.weight @ unit, unit)
        for layer in hf.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight -= torch.outer(unit, unit @ linear.weight)
    return model


@torch.no_grad()
def test_ablating_a_direction_everywhere_is_orthogonalizing_the_weights(llama):
    unit = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    sides = {"positive": {1: torch.randn(20, 32) + 3 * unit}, "negative": {1: torch.randn(20, 32)}}
    activations = Activations.from_tensors(**sides, site="resid_pre", model=llama)
    editor = fit(DirectionalAblation(), activations)
    u = editor["blocks.0.hook_attn_out"].right[:, 0]
    r = sides["positive"][1].double().mean(0) - sides["negative"][1].double().mean(0)
    torch.testing.assert_close(u.double(), r / r.norm())
    assert [site.name for site in editor.sites] == ["resid_pre", "attn_out", "mlp_out"] * 3
    assert "resid_pre of layers 0,2, attn_out of layers 0-2, mlp_out of layers 0-2: rank 1" in repr(editor)
    tokens = torch.randint(2, 258, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = orthogonalized(build_bridge("llama"), u)(tokens)
    with editor.attached(llama):
        logits = llama(tokens)
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    assert (logits - llama(tokens)).abs().max() > 0.01


@torch.no_grad()
def test_an_ablated_direction_is_gone_from_the_stream_of_every_architecture(bridge):
    unit = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    sides = {"positive": {1: (3 * unit)[None]}, "negative": {1: torch.zeros(1, 32)}}
    editor = fit(DirectionalAblation(), Activations.from_tensors(**sides, site="resid_pre", model=bridge))
    tokens = torch.randint(2, 258, (2, 7), generator=torch.Generator().manual_seed(1))
    _, plain = bridge.run_with_cache(tokens)
    with editor.attached(bridge):
        _, cache = bridge.run_with_cache(tokens)
    for layer in range(3):
        name = f"blocks.{layer}.hook_resid_post"
        assert (cache[name] @ unit).abs().max() < 1e-4 < (plain[name] @ unit).abs().max()


def test_adding_is_at_the_source_alone():
    data = layers_of(0, 1, 2, 3)
    editor = fit(DirectionalAblation(source=-2, operation="add"), data)
    assert editor.sites == [Site(2)]
    close(editor[2].shift, fit(MeanDifference(), data)[2].shift, 1e-7)
    swapped = refit(editor, data.swapped())
    close(swapped[2].shift, -editor[2].shift, 1e-7)


def test_the_source_is_chosen_among_early_layers_and_can_be_given():
    noise = torch.randn(60, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sides = {
        "positive": {0: noise, 1: noise + 9 * PLANTED, 2: noise + 4 * PLANTED, 3: noise, 4: noise + 90 * PLANTED},
        "negative": {layer: noise.flip(0) for layer in range(5)},
    }
    editor = fit(DirectionalAblation(at=("resid_post",)), Activations.from_tensors(**sides))
    assert {report["source_layer"] for report in editor.card.reports.values()} == {1.0}  # 4 is not of the first 80 %
    assert editor.layers == [0, 1, 2, 3, 4]
    fewer = refit(editor.without_layers([0]), Activations.from_tensors(**sides))
    assert fewer.layers == [1, 2, 3, 4]
    with pytest.raises(ModelMismatchError, match="has no layer 7"):
        fit(DirectionalAblation(source=7), Activations.from_tensors(**sides))
    heads = Activations.from_tensors(**sides, site="attn_out")
    with pytest.raises(InputError, match="direction is of the residual stream"):
        fit(DirectionalAblation(), heads)
    with pytest.raises(InputError, match="in the residual stream's basis"):
        DirectionalAblation(at=("attn.hook_z",))


# --- Tokens and positions of the mean difference ---------------------------------------------------------------------


@torch.no_grad()
def test_actadd_at_its_positions(llama):
    """One pair of prompts: the difference at every position is added there, at the beginning of another prompt."""
    plus, minus = ([0, 70, 71], [0, 80, 81])
    site = "blocks.1.hook_resid_pre"
    states = {
        name: llama.run_with_cache(torch.tensor([ids]))[1][site][0] for name, ids in {"+": plus, "-": minus}.items()
    }
    difference = states["+"] - states["-"]
    prompt = torch.randint(2, 258, (1, 8), generator=torch.Generator().manual_seed(1))

    def add(tensor, hook):
        tensor[:, :3] += 2.0 * difference
        return tensor

    expected = llama.run_with_hooks(prompt, fwd_hooks=[(site, add)])
    editors = []
    for position in (1, 2):  # at the first, both hold the beginning token alone
        sides = {"positive": {1: states["+"][[position]]}, "negative": {1: states["-"][[position]]}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeaLensWarning)
            editor = MeanDifference().fit(Activations.from_tensors(**sides, site="resid_pre"))
        editors.append(editor.scaled(2.0).at_positions([position]))
    assert difference[0].abs().max() == 0
    with editors[0].attached(llama), editors[1].attached(llama):
        torch.testing.assert_close(llama(prompt), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_of_caa_and_of_diffmean(llama):
    """The letter of an answer, and the mean over whole texts but their first token."""
    letters = Demonstrations.from_lists(["Is it so? "], ["(A)"], ["(B)"])
    texts = Demonstrations.from_lists([""], ["It is so."], ["It is not."])
    for demonstrations, token, span in ((letters, -2, slice(-2, -1)), (texts, "mean", slice(1, None))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeaLensWarning)
            editor = MeanDifference().fit(collect_activations(llama, demonstrations, [1], token, progress=False))
        row, means = demonstrations[0], []
        for answer in (row.positive, row.negative):
            ids = llama.to_tokens(row.prompt + answer)
            assert ids[0, 0] == llama.tokenizer.bos_token_id
            means.append(llama.run_with_cache(ids)[1]["blocks.1.hook_resid_post"][0, span].mean(0))
        torch.testing.assert_close(editor[1].shift, means[0] - means[1], atol=1e-5, rtol=1e-5)


def test_the_mean_of_the_differences_of_pairs_is_the_difference_of_means():
    data = given(rows())
    pairs = (data.positive[LAYER] - data.negative[LAYER]).mean(0)
    close(fit(MeanDifference(), data)[LAYER].shift.double(), pairs, 1e-6)
