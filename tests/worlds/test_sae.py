import json
import random

import pytest
import torch

import sea_lens as sl
from experiments.sae import states, train
from experiments.worlds.documents import document
from sea_lens.worlds.demo import answers
from sea_lens.worlds.load import SAE_WEIGHTS


@pytest.fixture(scope="module")
def sae():
    return sl.load_sae("organism")


@pytest.fixture(scope="module")
def fitted(organism, sae):
    model, world = organism
    activations = sl.collect_activations(model, world.demonstrations(), [1], batch_size=240, progress=False)
    with pytest.warns(sl.SeaLensWarning, match="longer than the activations"):
        return activations, sl.SAS(sae, tau=0.3).fit(activations)


def test_the_embedded_sae_explains_documents_that_it_has_not_seen(organism, sae):
    model, world = organism
    told = json.loads((SAE_WEIGHTS / "measured.json").read_text())
    rows = states(model, [document(world, random.Random(77_000 + number)) for number in range(60)], told["layer"])
    found = sae.measure(rows)
    assert (sae.width, sae.n_features, sae.site) == (128, told["features"], f"blocks.{told['layer']}.hook_resid_post")
    assert found.explained_variance == pytest.approx(told["explained variance"], abs=0.003)
    assert found.l0 == pytest.approx(told["L0"], abs=0.7)
    assert told["explained variance"] == pytest.approx(told["explained variance with float32 weights"], abs=1e-4)
    assert told["loss through the SAE"] < told["loss"] + 0.01 < told["loss through the mean"]
    assert sum(path.stat().st_size for path in SAE_WEIGHTS.iterdir()) < 1.5e6


def test_features_found_on_the_fitting_facts_steer_the_held_out_ones(organism, fitted):
    model, world = organism
    activations, editor = fitted
    facts = world.held_out[::2]
    plain, edited, swapped, random_one = (
        answers(model, world, facts, one).right.share
        for one in (None, editor, sl.refit(editor, activations.swapped()), sl.random_editor_like(editor, 0))
    )
    assert edited > plain + 0.15
    assert swapped < plain - 0.15
    assert abs(random_one - plain) < 0.12


def test_what_was_found_is_read_as_features_and_tokens(organism, fitted, tmp_path):
    editor = fitted[1]
    found = sl.read_features(organism[0], editor, k=4)
    edit = editor[1]
    assert sorted(found.table["feature"]) == edit.features.tolist()
    assert found.table["moves"].is_monotonic_decreasing
    one_sided = found.table[["positive", "negative"]].to_numpy()
    assert ((one_sided >= 0.3 - 1e-6).sum(1) == 1).all()
    up = (found.table["side"] == "up").to_numpy()
    assert (one_sided[up, 0] > one_sided[up, 1]).all()
    assert found.table["raises"].map(len).tolist() == [4] * len(found.table)
    assert "organism (1,024 features" in repr(found)
    found.save(tmp_path)
    assert type(found).load(tmp_path).table.equals(found.table)
    with pytest.raises(sl.analysis.features.InputError, match="along no features of a sparse autoencoder"):
        sl.read_features(organism[0], sl.Editor({1: sl.AffineEdit.of_shift(torch.ones(128))}))


def test_it_is_fitted_from_the_command_line(sea_lens, demos, tmp_path):
    code, out, err = sea_lens(
        *[
            "fit",
            "sas",
            "organism",
            demos,
            "--sae",
            "organism",
            "--tau",
            "0.3",
            "--layers",
            "1",
            "--out",
            tmp_path / "e",
        ]
    )
    assert (code, "shifts" in out) == (0, True), err
    loaded = sl.Editor.from_pretrained(tmp_path / "e")
    assert (loaded.card.settings["sae"].name, loaded.card.settings["tau"]) == ("organism", 0.3)
    assert loaded.layers == [1]
    code, out, err = sea_lens("inspect", tmp_path / "e")
    assert "sae organism (1,024 features, " in " ".join(out.split())
    code, out, err = sea_lens("features", "organism", tmp_path / "e", "--out", tmp_path / "f", "--k", "2")
    assert (code, "Features at blocks.1.hook_resid_post, of organism" in out) == (0, True), err
    assert (tmp_path / "f" / "features-blocks.1.hook_resid_post.csv").is_file()
    for options, why in (
        ([], "SAS needs a sparse autoencoder"),
        (["--sae", "nowhere"], "There is no folder nowhere with an SAE"),
        (["--sae", "organism", "--tau", "2"], "expected a finite number from 0 to 1"),
    ):
        code, out, err = sea_lens("fit", "sas", "organism", demos, *options)
        assert code != 0
        assert why in " ".join(err.split())


def test_training_finds_a_planted_dictionary():
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    codes = (torch.rand(4000, 16, generator=generator) < 0.12) * (1 + torch.rand(4000, 16, generator=generator))
    state = torch.get_rng_state()
    sae = train(codes @ rows + 3, 16, 2, 500, seed=0, batch=256)
    torch.set_rng_state(state)
    found = sae.measure(codes @ rows + 3)
    assert found.explained_variance > 0.6
    nearest = (torch.nn.functional.normalize(sae.decoder, dim=1) @ rows.T).max(0).values
    assert float(nearest.median()) > 0.95
