import numpy as np
import pytest
import torch
from conftest import D_MODEL, N_LAYERS, build_bridge

from sea_lens import Activations, Editor, EditorCard, fit_sea
from sea_lens.analysis.massive import massive_activations, massive_tokens
from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import InputError
from sea_lens.models.activations import ROLES
from sea_lens.models.tokens import token_ids

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")

N, D = 20, 9


def ones(layers=(0,), n=N, d=D):
    """Activations of plus and minus 0.1, so that every median is 0.1."""
    generator = torch.Generator().manual_seed(0)
    return {
        role: {layer: 0.1 * (torch.randint(0, 2, (n, d), generator=generator) * 2.0 - 1) for layer in layers}
        for role in ROLES
    }


# --- collected activations ---------------------------------------------------------------------------------------------


def test_planted_coordinates_are_found_and_their_texts_counted():
    roles = ones(layers=(1, 4))
    roles["neutral"][1][:3, 2] = -500.0
    roles["positive"][1][5, 2] = 900.0
    roles["negative"][1][:, 7] = 200.0
    table = massive_activations(Activations.from_tensors(**roles)).table
    first = table[table["layer"] == 1]
    assert first["coordinate"].tolist() == [2, 7]
    assert first["largest"].tolist() == [900.0, 200.0]
    np.testing.assert_allclose(first["ratio"], [9000, 2000], rtol=1e-6)
    assert first["massive"].tolist() == [True, True]
    assert first["texts"].tolist() == [4, 20]
    assert "share_positive" not in table


def test_the_largest_coordinate_of_a_layer_is_listed_in_any_case():
    roles = ones(layers=(0, 2))
    roles["neutral"][2][0, 3] = -0.5
    table = massive_activations(Activations.from_tensors(**roles)).table
    assert table["layer"].tolist() == [0, 2]
    assert not table["massive"].any()
    assert (table["texts"] == 0).all()
    row = table.iloc[1]
    assert (row["coordinate"], row["largest"], row["ratio"]) == (3, 0.5, pytest.approx(5))


@pytest.mark.parametrize(
    ("value", "magnitude", "ratio", "met"),
    [
        (100.0, 100.0, 1.0, False),  # above, not at
        (100.001, 100.0, 1.0, True),
        (64.0, 1.0, 128.0, True),  # at least
        (63.99, 1.0, 128.0, False),
        (500.0, 100.0, 1001.0, False),
        (50.0, 100.0, 1.0, False),
    ],
)
def test_the_criterion_is_above_the_magnitude_and_at_least_the_ratio(value, magnitude, ratio, met):
    h = torch.full((4, 5), 0.5)
    h[1, 2] = value
    found = massive_activations(
        Activations.from_tensors(**{role: {0: h} for role in ROLES}), magnitude=magnitude, ratio=ratio
    )
    (row,) = found.table.to_dict("records")
    assert (row["coordinate"], row["massive"], row["texts"]) == (2, met, 3 * met)
    assert (found.magnitude, found.ratio) == (magnitude, ratio)


def test_the_ratio_is_to_the_median_of_the_same_text():
    h = torch.full((2, 5), 0.1)
    h[1] = 10.0  # a loud text
    h[:, 3] = 300.0
    table = massive_activations(Activations.from_tensors(**{role: {0: h} for role in ROLES})).table
    assert (table["coordinate"].tolist(), table["texts"].tolist()) == ([3], [3])


def test_activations_of_zeros_have_a_ratio_and_no_massive_one():
    table = massive_activations(Activations.from_tensors(**{role: {0: torch.zeros(3, 4)} for role in ROLES})).table
    assert table[["largest", "ratio", "texts"]].iloc[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("ranks", [1, (2, 5)])
@pytest.mark.parametrize("center", [False, True])
def test_shares_of_a_subspace_over_all_coordinates_make_one(ranks, center):
    generator = torch.Generator().manual_seed(0)
    roles = {role: {k: torch.randn(N, D, generator=generator) + 0.5 for k in (0, 1)} for role in ROLES}
    activations = Activations.from_tensors(**roles)
    editor = fit_sea(activations, ranks=ranks, center=center, layers=[1])
    table = massive_activations(activations, editor, magnitude=1e-9, ratio=1e-9).table
    assert table["coordinate"].tolist() == [*range(D), *range(D)]
    edited = table[table["layer"] == 1]
    for side, rank in zip(("positive", "negative"), (ranks, ranks) if ranks == 1 else ranks, strict=True):
        assert table.loc[table["layer"] == 0, f"share_{side}"].isna().all()
        assert edited[f"share_{side}"].sum() == pytest.approx(1)
        neutral, other = (activations[role][1].double().numpy() for role in ("neutral", side))
        if center:
            neutral, other = neutral - neutral.mean(0), other - other.mean(0)
        basis = np.linalg.svd(neutral.T @ other)[0][:, :rank]
        np.testing.assert_allclose(edited[f"share_{side}"], (basis**2).sum(1) / rank, atol=1e-10)


def test_a_massive_coordinate_takes_the_whole_of_an_uncentered_subspace():
    roles = ones()
    for role in ROLES:
        roles[role][0][:, 6] = 400.0
    activations = Activations.from_tensors(**roles)
    (row,) = massive_activations(activations, fit_sea(activations, ranks=1)).table.to_dict("records")
    assert row["coordinate"] == 6
    assert row["share_positive"] > 0.999
    assert row["share_negative"] > 0.999


def test_editors_of_another_method_are_refused():
    by_hand = Editor({0: AffineEdit(torch.eye(D)[:, :1], torch.ones(1))}, EditorCard("by hand", {}))
    with pytest.raises(InputError, match="'by hand'"):
        massive_activations(Activations.from_tensors(**ones()), by_hand)


@pytest.mark.parametrize(
    "criterion", [{"magnitude": 0.0}, {"ratio": 0.0}, {"magnitude": -1.0}, {"ratio": float("nan")}]
)
def test_a_criterion_of_numbers_above_zero_is_asked_for(llama, criterion):
    with pytest.raises(InputError, match="two numbers above zero"):
        massive_activations(Activations.from_tensors(**ones()), **criterion)
    with pytest.raises(InputError, match="two numbers above zero"):
        massive_tokens(llama, ["a"], **criterion)


# --- tokens of texts ---------------------------------------------------------------------------------------------------

COORDINATE = 5
TEXTS = ["aXb", "no such token in this longer text", "X", "bXX", "ab"]


@pytest.fixture(scope="module", params=["llama", "gpt-neox"])
def planted(request):
    """A model to which the letter X, and padding, are massive at one coordinate."""
    model = build_bridge(request.param)
    embedding = model.original_model.get_input_embeddings().weight
    tokenizer = model.tokenizer
    with torch.no_grad():
        for token in (tokenizer.convert_tokens_to_ids("X"), tokenizer.pad_token_id):
            embedding[token, COORDINATE] = -20_000.0
    return model


def test_the_planted_token_is_found_at_every_layer_and_padding_never(planted):
    table = massive_tokens(planted, TEXTS)
    x = planted.tokenizer.convert_tokens_to_ids("X")
    expected = [
        (layer, text, position)
        for layer in range(N_LAYERS)
        for text, words in enumerate(TEXTS)
        for position, token in enumerate(token_ids(planted, words))
        if token == x
    ]
    assert list(table[["layer", "text", "position"]].itertuples(index=False, name=None)) == expected
    assert set(table["token"]) == {"X"}
    assert set(table["coordinate"]) == {COORDINATE}
    assert (table["value"] < -10_000).all()


def test_values_and_ratios_are_those_of_the_hidden_states(planted):
    table = massive_tokens(planted, TEXTS)
    for row in table[table["layer"] < N_LAYERS - 1].itertuples():  # its last hidden state is normed
        ids = torch.tensor([token_ids(planted, TEXTS[row.text])])
        with torch.no_grad():
            states = planted.original_model(ids, output_hidden_states=True).hidden_states
        h = states[row.layer + 1][0, row.position].double().numpy()
        assert row.value == pytest.approx(h[row.coordinate], rel=1e-5)
        assert row.ratio == pytest.approx(abs(h[row.coordinate]) / np.sort(np.abs(h))[(D_MODEL - 1) // 2], rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_does_not_change_what_is_found(planted, batch_size):
    whole, parts = massive_tokens(planted, TEXTS), massive_tokens(planted, TEXTS, batch_size=batch_size)
    keys = ["layer", "text", "position", "token", "coordinate"]
    assert parts[keys].equals(whole[keys])
    np.testing.assert_allclose(parts["value"], whole["value"], rtol=1e-5)
    np.testing.assert_allclose(parts["ratio"], whole["ratio"], rtol=1e-2)


def test_other_sites_are_looked_at_too(planted):
    table = massive_tokens(planted, ["aXb"], site="mlp_out")
    assert table.empty  # it is the stream that carries the value


def test_nothing_massive_gives_an_empty_table_with_its_columns(llama):
    table = massive_tokens(llama, ["hello", "you"])
    assert table.empty
    assert list(table) == ["layer", "text", "position", "token", "coordinate", "value", "ratio"]


def test_no_hook_stays_on_the_model(llama):
    tokens = torch.tensor([[5, 6, 7]])
    before = llama(tokens)
    massive_tokens(llama, ["hello"], magnitude=1e-3, ratio=1e-3)
    assert torch.equal(llama(tokens), before)


@pytest.mark.usefixtures("without_type_checks")
def test_a_single_string_no_texts_and_long_ones_are_refused(llama):
    for texts in ("one text", [], ()):
        with pytest.raises(InputError, match="Give a list of texts, with at least one"):
            massive_tokens(llama, texts)
    with pytest.raises(InputError, match="Text 1 is "):
        massive_tokens(llama, ["a", "b" * 200])
