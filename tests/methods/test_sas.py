import shutil
from dataclasses import replace

import pytest
import torch

import sea_lens as sl
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.methods.method import METHODS, method_of
from sea_lens.sae.sae import SAE

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
POSITIVE = torch.tensor([[2.0, 0, 1, 0, 0, 0], [4, 0, 1, 0, 0, 0], [0, 0, 1, 0, 3, 0]])
NEGATIVE = torch.tensor([[0.0, 5, 1, 0, 0, 0], [0, 7, 1, 0, 0, 0], [0, 0, 1, 6, 0, 0]])


def dictionary(**options):
    """Six features that are the first six of eight coordinates."""
    rows = torch.eye(6, 8)
    return SAE(rows.T.contiguous(), torch.zeros(6), rows, torch.zeros(8), site="blocks.2.hook_resid_post", **options)


def activations(positive=POSITIVE, negative=NEGATIVE, site=2):
    sides = {"positive": positive, "negative": negative}
    rows = {name: torch.nn.functional.pad(codes, (0, 8 - codes.shape[1])) for name, codes in sides.items()}
    return sl.Activations.from_tensors(**{name: {site: side} for name, side in rows.items()})


def vector_of(editor, n_features=6):
    edit = editor[2]
    return torch.zeros(n_features).index_copy(0, edit.features, edit.vector).tolist()


def fitted(tau=0.6, parts="both", sae=None, **sides):
    return sl.SAS(sae or dictionary(), tau, parts).fit(activations(**sides))


def test_the_frequency_filter_the_mean_over_active_rows_and_the_sharing():
    editor = fitted(0.6)
    assert vector_of(editor) == [3, -6, 0, 0, 0, 0]
    assert vector_of(fitted(0.3)) == [3, -6, 0, -6, 3, 0]
    h = torch.tensor([1, 2, 0.5, 0, 0, 0, 9, -9])
    assert editor[2](h).tolist() == [4, 0, 0.5, 0, 0, 0, 9, -9]
    assert editor.scaled(-1.0)[2](h).tolist() == [0, 8, 0.5, 0, 0, 0, 9, -9]
    assert editor.scaled(0.0)[2](h) is h
    assert vector_of(fitted(0.3, "positive")) == [3, 0, 0, 0, 3, 0]
    assert vector_of(fitted(0.3, "negative")) == [0, -6, 0, -6, 0, 0]
    report = editor.card.reports[sl.Site(2)]
    assert {name: report[name] for name in ("positive_features", "negative_features", "shared_features")} == {
        "positive_features": 1,
        "negative_features": 1,
        "shared_features": 1,
    }
    torch.testing.assert_close(editor[2].frequencies, torch.tensor([[2 / 3, 0], [0, 2 / 3]]))
    assert str(editor.where) == "all but the first token and massive ones"


def test_codes_that_are_always_on_and_disjoint_give_the_mean_difference():
    generator = torch.Generator().manual_seed(0)
    positive = torch.cat([torch.rand(40, 3, generator=generator) + 0.1, torch.zeros(40, 3)], 1)
    negative = torch.cat([torch.zeros(40, 3), torch.rand(40, 3, generator=generator) + 0.1], 1)
    sides = {"positive": positive, "negative": negative}
    edit = fitted(1.0, **sides)[2]
    dense = sl.MeanDifference().fit(activations(**sides))[2]
    torch.testing.assert_close(edit.vector @ edit.rows, dense.shift, atol=1e-6, rtol=1e-6)


def test_swapping_turns_the_vector_and_rotating_the_basis_changes_it():
    sae = dictionary()
    editor = fitted(0.3, sae=sae)
    swapped = sl.refit(editor, activations().swapped())
    assert vector_of(swapped) == [-3, 6, 0, 6, -3, 0]
    permuted = activations(POSITIVE[[2, 0, 1]], NEGATIVE[[1, 2, 0]])
    assert vector_of(sl.refit(editor, permuted)) == vector_of(editor)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).Q
    turned = sl.Activations.from_tensors(
        positive={2: activations().positive[2] @ turn}, negative={2: activations().negative[2] @ turn}
    )
    there_and_back = sl.refit(editor, turned)[2]
    h = torch.randn(5, 8)
    assert not torch.allclose(there_and_back(h @ turn) @ turn.T, editor[2](h), atol=0.1)


def test_sums_are_exact_for_large_float16_activations_and_in_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    positive, negative = (1000 * torch.rand(300, 6, generator=generator) for _ in range(2))
    positive[:, 3:], negative[:, :3] = 0, 0
    whole = fitted(0.5, positive=positive, negative=negative)
    monkeypatch.setattr("sea_lens.sae.sae.CODES_AT_ONCE", 6 * 7)
    halves = sl.Activations.from_tensors(
        **{
            name: {2: torch.nn.functional.pad(side, (0, 2)).half()}
            for name, side in (("positive", positive), ("negative", negative))
        }
    )
    found = sl.SAS(dictionary(), 0.5).fit(halves)
    torch.testing.assert_close(found[2].vector, whole[2].vector, atol=0.1, rtol=1e-3)
    expected = positive[:, :3].half().double().mean(0)
    torch.testing.assert_close(found[2].vector[:3].double(), expected, atol=1e-4, rtol=1e-6)


@pytest.mark.usefixtures("without_type_checks")
def test_an_empty_vector_is_refused_by_its_cause():
    with pytest.raises(
        InputError, match=r"No feature is active in 80% of the positive or negative activations; .*67% of the"
    ):
        fitted(0.8, positive=POSITIVE[:, :2], negative=NEGATIVE[:, :2])
    with pytest.raises(InputError, match=r"so on both sides \(1 features\), and shared ones are left out"):
        fitted(0.8)
    with pytest.raises(InputError, match=r"of the negative activations; .* Lower tau"):
        fitted(0.6, "negative", negative=torch.zeros(3, 6))
    for tau in (-0.1, 1.1):
        with pytest.raises(InputError, match="tau must be a number from 0 to 1"):
            sl.SAS(dictionary(), tau)
    with pytest.raises(InputError, match=r"SAS needs a sparse autoencoder: SAS\(sea_lens.load_sae\(folder\)\)"):
        sl.SAS()
    with pytest.raises(InputError, match="only some of its features"):
        sl.SAS(dictionary().at_features(torch.tensor([1])))


def test_another_site_or_width_is_refused_and_other_layers_are_left_alone():
    sae = dictionary()
    with pytest.raises(ModelMismatchError, match=r"of blocks.2.hook_resid_post, and these activations are of blocks.3"):
        sl.SAS(sae).fit(activations(site=3))
    narrow = {2: torch.randn(4, 5)}
    with pytest.raises(ModelMismatchError, match=r"is for width 8, and the activations at .* have width 5"):
        sl.SAS(sae).fit(sl.Activations.from_tensors(positive=narrow, negative=narrow))
    rows = {name: {2: side[2], 3: side[2]} for name, side in activations().sides.items()}
    both = sl.Activations.from_tensors(**rows)
    assert sl.SAS(sae, 0.6).fit(both).layers == [2]
    assert sl.refit(sl.SAS(sae, 0.6).fit(both), both).layers == [2]
    anywhere = replace(sae, site=None, source=None)
    with pytest.raises(InputError, match="Give site to load_sae"):
        sl.SAS(anywhere, 0.6).fit(both)
    assert sl.SAS(anywhere, 0.6).fit(both.at_sites([3])).layers == [3]
    with pytest.raises(InputError, match="there are no negative ones"):
        sl.SAS(sae).fit(sl.Activations({"positive": activations()["positive"]}))


def test_an_sae_that_does_not_know_these_activations_is_warned_about():
    far = {2: 50 + torch.randn(20, 8)}
    near = {2: -50 - torch.randn(20, 8)}
    with pytest.warns(sl.SeaLensWarning, match=r"The SAE explains -?\d+% of the variance of these activations"):
        sl.SAS(dictionary(), 0.6).fit(sl.Activations.from_tensors(positive=near, negative=far))


def test_additions_below_the_threshold_are_told_at_the_fit():
    sae = dictionary(activation="jumprelu", threshold=torch.full((6,), 1.5))
    editor = fitted(0.6, sae=sae)
    assert editor.card.reports[sl.Site(2)]["full_from_strength"] == 0.5  # 1.5 over a mean of 3
    off = torch.zeros(8)
    assert editor.scaled(0.5)[2](off).tolist() == [0] * 8
    assert editor.scaled(0.51)[2](off)[0] > 1.5


def test_a_card_names_the_sae_and_finds_it_again(tmp_path, monkeypatch):
    dictionary().save_pretrained(tmp_path / "sae")
    data = activations()
    editor = fitted(0.6, sae=sl.load_sae(tmp_path / "sae"))
    editor.save_pretrained(tmp_path / "editor")
    loaded = sl.Editor.from_pretrained(tmp_path / "editor")
    assert (loaded.fingerprint, loaded.card) == (editor.fingerprint, editor.card)
    method = method_of(loaded)
    assert method == sl.SAS(tmp_path / "sae", tau=0.6)
    assert str(method.sae).startswith("sae (6 features, ")
    assert str(tmp_path) not in (tmp_path / "editor" / "config.json").read_text()  # a path says things of its owner
    assert sl.refit(loaded, data).fingerprint == editor.fingerprint
    assert sl.refit(loaded, data.swapped()).fingerprint != editor.fingerprint
    del method
    shutil.move(tmp_path / "sae", tmp_path / "moved")
    with pytest.raises(InputError, match=r"not in memory, and there is no .*sae here. .* known by its digest"):
        sl.refit(loaded, data)
    kept = sl.load_sae(tmp_path / "moved")  # known by its digest from now on
    assert sl.refit(loaded, data).fingerprint == editor.fingerprint
    del kept
    assert sl.refit(loaded, data).fingerprint == editor.fingerprint  # from where it was loaded last
    other = replace(dictionary(), encoder_bias=torch.full((6,), -2e-3), source=None)
    other.save_pretrained(tmp_path / "moved")
    with pytest.raises(InputError, match="there is another SAE now"):
        sl.refit(loaded, data)
    monkeypatch.setattr("sea_lens.sae.load._PLACES", {})  # as in another process
    with pytest.raises(InputError, match="holds its folder's name"):
        sl.refit(loaded, data)
    dictionary().save_pretrained(tmp_path / "sae")
    monkeypatch.chdir(tmp_path)
    assert sl.refit(loaded, data).fingerprint == editor.fingerprint
    unsaved = fitted(0.6, sae=replace(dictionary(), encoder_bias=torch.full((6,), -1e-3), source=None))
    with pytest.raises(InputError, match="was made in memory and is gone"):
        sl.refit(unsaved, data)


def test_the_listing_has_its_line_and_source():
    assert METHODS["sas"].summary.startswith("Shifts the features of a sparse autoencoder")
    assert "2503.00177" in METHODS["sas"].source
