from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analysis.conftest import random_activations
from conftest import D_MODEL, N_LAYERS, build_bridge

import sea_lens as sl
from sea_lens import Activations, AffineEdit, Editor, Site, fit_sea
from sea_lens.analysis.tokens import read_directions
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.methods.sea.feature_space import Tanh

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")


def final_norm(hf_model):
    base = hf_model.base_model
    return next(getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name))


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2"])
def scaled(request):
    """A model of each kind of final norm, which has scales of its own, and biases as large where it has any."""
    model = build_bridge(request.param)
    norm = final_norm(model.original_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight += 0.8 * torch.rand(D_MODEL, generator=generator)
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(3 * torch.randn(D_MODEL, generator=generator))
    return model


def reader(model):
    """The final norm's linear part and the unembedding, written out in numpy from the Hugging Face model."""
    hf_model = model.original_model
    norm = final_norm(hf_model)
    kind = hf_model.config.model_type
    scale = norm.weight.detach().double().numpy() + (kind == "gemma2")  # Gemma's scales are kept less one
    centered = kind in ("gpt2", "gpt_neox")
    rows = hf_model.get_output_embeddings().weight.detach().double().numpy()
    matrix = rows * scale
    if centered:
        matrix = matrix - matrix.mean(1, keepdims=True)
    cap = getattr(hf_model.config, "final_logit_softcapping", None)
    epsilon = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))

    def read(direction):
        x = direction.double().numpy()
        x = x - x.mean() if centered else x
        logits = matrix @ x / np.sqrt((x**2).mean() + epsilon)
        return cap * np.tanh(logits / cap) if cap else logits

    return SimpleNamespace(read=read, matrix=matrix)


def editor_of(directions, eigenvalues, layer=1, **options):
    return Editor(
        {layer: AffineEdit.of_eigenvalues(directions, torch.tensor(eigenvalues, dtype=directions.dtype), **options)}
    )


def orthonormal(k, d=D_MODEL, seed=0):
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed)))[0]


def activations_with(neutral, layer=1):
    roles = {role: {layer: neutral} for role in ("neutral", "positive", "negative")}
    return Activations.from_tensors(**roles)


def words(model, ids):
    return tuple(model.tokenizer.decode([index]) for index in ids)


# --- what is raised and lowered ----------------------------------------------------------------------------------------


def test_tokens_raised_and_lowered_are_those_of_the_written_out_reading(scaled):
    directions = orthonormal(3)
    table = read_directions(scaled, editor_of(directions, [0.75, 0.25, -0.5]), 1, k=5).table
    assert table["gain"].tolist() == pytest.approx([0.75, 0.25, -0.5])
    read = reader(scaled).read
    for (_, row), direction in zip(table.iterrows(), directions.T, strict=True):
        logits = read(direction)
        order = np.argsort(logits)
        np.testing.assert_allclose(row["raised_by"], logits[order[:-6:-1]], atol=1e-3)
        np.testing.assert_allclose(row["lowered_by"], logits[order[:5]], atol=1e-3)
        assert row["raises"] == words(scaled, order[:-6:-1])
        assert row["lowers"] == words(scaled, order[:5])


def test_the_embedded_model_names_a_word_whose_row_is_planted(organism):
    model, _ = organism
    matrix = reader(model).matrix
    token = int(np.linalg.norm(matrix, axis=1).argmax())
    direction = torch.tensor(matrix[token] / np.linalg.norm(matrix[token]), dtype=torch.float32)[:, None]
    (row,) = read_directions(model, editor_of(direction, [-1.0]), 1, k=4).table.to_dict("records")
    assert row["kind"] == "suppressed"
    assert row["raises"][0] == model.tokenizer.decode([token])


def test_a_model_in_bfloat16_is_read():
    model = build_bridge("llama", torch.bfloat16)
    direction = orthonormal(2, seed=2)
    table = read_directions(model, editor_of(direction, [1.0, -1.0]), 1, k=258).table
    for (_, row), column in zip(table.iterrows(), direction.T, strict=True):
        np.testing.assert_allclose(row["raised_by"], np.sort(reader(model).read(column))[::-1], atol=0.1)


# --- order, strength, orientation --------------------------------------------------------------------------------------


def test_promoted_directions_come_first_by_decreasing_gain(llama):
    table = read_directions(llama, editor_of(orthonormal(4), [-0.5, 0.25, -1.0, 0.75]), 1).table
    assert table["gain"].tolist() == pytest.approx([0.75, 0.25, -0.5, -1.0])
    assert table["kind"].tolist() == ["promoted", "promoted", "suppressed", "suppressed"]
    assert table.index.tolist() == [0, 1, 2, 3]
    assert all(len(tokens) == 10 for tokens in [*table["raises"], *table["lowers"]])


@pytest.mark.parametrize(("strength", "kinds"), [(2.0, ["promoted", "suppressed"]), (-0.5, ["promoted", "suppressed"])])
def test_the_strength_multiplies_gains_and_not_logits(llama, strength, kinds):
    plain = read_directions(llama, editor_of(orthonormal(2), [0.75, -0.5]), 1).table
    table = read_directions(llama, editor_of(orthonormal(2), [0.75, -0.5], strength=strength), 1).table
    assert table["gain"].tolist() == pytest.approx(sorted([strength * 0.75, strength * -0.5], reverse=True))
    assert table["kind"].tolist() == kinds
    order = [0, 1] if strength > 0 else [1, 0]
    assert table["raises"].tolist() == plain["raises"].iloc[order].tolist()
    assert table["raised_by"].tolist() == plain["raised_by"].iloc[order].tolist()


def test_without_activations_signs_are_arbitrary_and_said_to_be(llama):
    found = read_directions(llama, editor_of(orthonormal(2), [1.0, -1.0]), 1)
    assert (found.layer, found.oriented) == (1, False)
    assert found.table["component"].isna().all()


def test_directions_point_to_where_neutral_activations_lie(llama):
    directions = orthonormal(3)
    noise = torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(5)) * 0.1
    activations = activations_with(noise + directions @ torch.tensor([2.0, -3.0, 1.0]))
    found = read_directions(llama, editor_of(directions, [0.75, 0.5, -0.5]), 1, k=4, activations=activations)
    assert found.oriented
    along = (activations.neutral[1].double() @ directions.double()).mean(0)
    np.testing.assert_allclose(found.table["component"], along.abs(), rtol=1e-6)
    pointed = directions * torch.tensor([1.0, -1.0, 1.0])
    expected = read_directions(llama, editor_of(pointed, [0.75, 0.5, -0.5]), 1, k=4).table
    for column in ("raises", "lowers", "raised_by", "lowered_by"):
        assert found.table[column].tolist() == expected[column].tolist()
    turned = read_directions(llama, editor_of(-directions, [0.75, 0.5, -0.5]), 1, k=4, activations=activations).table
    for column in ("raises", "lowers"):
        assert turned[column].tolist() == expected[column].tolist()


def test_a_shift_is_a_direction_and_keeps_its_sign(llama, reads_back):
    direction = orthonormal(1)[:, 0]
    shift = Editor({1: AffineEdit.of_shift(-3 * direction)})
    against = activations_with(direction.repeat(4, 1))  # neutral activations lie on its other side
    expected = read_directions(llama, editor_of(-direction[:, None], [3.0]), 1, k=4).table
    for activations, component in ((None, None), (against, -1.0)):
        found = read_directions(llama, shift.scaled(2.0), 1, k=4, activations=activations)
        assert found.table["gain"].tolist() == pytest.approx([6.0])
        assert found.oriented
        assert found.table["raises"].tolist() == expected["raises"].tolist()
        np.testing.assert_allclose(found.table["raised_by"].iloc[0], expected["raised_by"].iloc[0], rtol=1e-5)
        assert activations is None or found.table["component"].tolist() == pytest.approx([component])
    reads_back(found)
    assert len(repr(found).splitlines()) == 3


@pytest.mark.parametrize("method", [sl.SEA(ranks=2), sl.MeanDifference(), sl.LEACE()])
def test_the_edits_of_every_method_are_read_and_measured(llama, method):
    activations = random_activations(llama)
    editor = method.fit(activations)
    spectra = sl.measure_spectra(editor, activations)
    shares = sl.massive_activations(activations, editor, magnitude=1e-9, ratio=1e-9).table
    for layer in editor.layers:
        found = read_directions(llama, editor, layer, activations=activations)
        gains = spectra.gains[spectra.gains["layer"] == layer]["gain"]
        assert sorted(found.table["gain"]) == sorted(gains)
        assert len(gains) == max(1, editor[layer].rank)
        assert shares[shares["layer"] == layer]["share"].sum() == pytest.approx(1, abs=1e-5)


def test_an_oblique_edit_is_read_by_what_it_writes(llama):
    left, right = orthonormal(2, seed=1), orthonormal(2, seed=2)
    table = read_directions(llama, Editor({1: AffineEdit(left, right)}), 1, k=3).table
    gains = (left * right).sum(0)
    assert table["gain"].tolist() == pytest.approx(sorted(gains.tolist(), reverse=True))
    written = editor_of(left, gains.tolist())
    assert table["raises"].tolist() == read_directions(llama, written, 1, k=3).table["raises"].tolist()


def test_edits_in_sequence_have_the_gains_of_each(llama):
    first = Editor({1: AffineEdit.of_eigenvalues(orthonormal(1, seed=1), torch.tensor([0.5]), restore_norm=True)})
    second = Editor({1: AffineEdit.of_eigenvalues(orthonormal(1, seed=2), torch.tensor([-0.25]))})
    table = read_directions(llama, first.scaled(2.0) + second.scaled(3.0), 1).table
    assert table["gain"].tolist() == pytest.approx([1.0, -0.75])


def test_the_unembeddings_input_is_read_without_the_norm(llama):
    direction = orthonormal(1, seed=6)
    edit = AffineEdit.of_eigenvalues(direction, torch.ones(1))
    found = read_directions(llama, Editor({"unembed.hook_in": edit}), "unembed.hook_in", k=258)
    rows = llama.original_model.get_output_embeddings().weight.detach().double()
    logits = (rows @ direction.double())[:, 0].sort(descending=True).values
    np.testing.assert_allclose(found.table["raised_by"].iloc[0], logits, atol=1e-5)
    assert found.layer == "unembed.hook_in"


# --- what cannot be read -----------------------------------------------------------------------------------------------


def test_edits_without_directions_of_the_residual_stream_say_so(llama):
    generator = torch.Generator().manual_seed(0)
    roles = {role: {1: torch.randn(30, D_MODEL, generator=generator)} for role in ("neutral", "positive", "negative")}
    of_features = fit_sea(Activations.from_tensors(**roles), ranks=2, feature_map=Tanh(4.0))
    heads = Editor({Site(1, "attn.hook_z"): AffineEdit.of_shift(torch.ones(D_MODEL))})
    cases = [
        (
            of_features,
            r"The edit at blocks\.1\.hook_resid_post has no directions in the residual stream's basis \(Tanh",
        ),
        (editor_of(torch.zeros(D_MODEL, 0), []), r"no directions in the residual stream's basis \(changes nothing\)"),
        (heads, r"The edit at blocks\.1\.attn\.hook_z is not in the residual stream's basis"),
    ]
    for editor, message in cases:
        with pytest.raises(InputError, match=message):
            read_directions(llama, editor, 1)


def test_several_sites_of_a_layer_are_read_by_name(llama):
    edits = [AffineEdit.of_eigenvalues(orthonormal(1, seed=seed), torch.ones(1)) for seed in (1, 2)]
    editor = Editor({Site(1, "mlp_out"): edits[0], Site(1): edits[1]})
    with pytest.raises(InputError, match=r"several sites of layer 1"):
        read_directions(llama, editor, 1)
    for name, edit in zip(("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"), edits, strict=True):
        found = read_directions(llama, editor, name)
        assert found.layer == name
        assert found.table.equals(read_directions(llama, Editor({1: edit}), 1).table)


@pytest.mark.parametrize("k", [0, -1, 259])
def test_as_many_tokens_as_there_are_can_be_listed(llama, k):
    editor = editor_of(orthonormal(1), [1.0])
    with pytest.raises(InputError, match=f"k must be 1 to 258, the tokens of the vocabulary; got {k}"):
        read_directions(llama, editor, 1, k=k)
    row = read_directions(llama, editor, 1, k=258).table.iloc[0]
    assert row["raised_by"] == row["lowered_by"][::-1]


def test_wrong_layers_widths_and_activations_are_refused(llama):
    editor = editor_of(orthonormal(1), [1.0])
    with pytest.raises(ModelMismatchError):
        read_directions(llama, editor, 2)
    with pytest.raises(ModelMismatchError, match=str(N_LAYERS)):
        read_directions(llama, editor_of(orthonormal(1), [1.0], layer=N_LAYERS), N_LAYERS)
    with pytest.raises(ModelMismatchError, match="for d_model 16"):
        read_directions(llama, editor_of(orthonormal(1, d=16), [1.0]), 1)
    with pytest.raises(ModelMismatchError, match=r"it has blocks\.0\.hook_resid_post"):
        read_directions(llama, editor, 1, activations=activations_with(torch.ones(4, D_MODEL), layer=0))
