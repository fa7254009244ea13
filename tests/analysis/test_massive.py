import numpy as np
import pandas as pd
import pytest
import torch
from conftest import D_MODEL, N_LAYERS, build_bridge

from sea_lens import Activations, AffineEdit, Editor, Site, fit_sea
from sea_lens.analysis.massive import TOKEN_COLUMNS, MassiveTokens, kinds_of, massive_activations, massive_tokens
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


def test_planted_coordinates_are_found_and_their_texts_counted(reads_back):
    roles = ones(layers=(1, 4))
    roles["neutral"][1][:3, 2] = -500.0
    roles["positive"][1][5, 2] = 900.0
    roles["negative"][1][:, 7] = 200.0
    roles["neutral"][4][0, 3] = -0.5
    found = massive_activations(Activations.from_tensors(**roles))
    first, second = (found.table[found.table["layer"] == layer] for layer in (1, 4))
    assert first["coordinate"].tolist() == [2, 7]
    assert first["largest"].tolist() == [900.0, 200.0]
    np.testing.assert_allclose(first["ratio"], [9000, 2000], rtol=1e-6)
    assert first["massive"].tolist() == [True, True]
    assert first["texts"].tolist() == [4, 20]
    # The largest coordinate of a layer is listed in any case.
    assert second[["coordinate", "largest", "massive", "texts"]].to_numpy().tolist() == [[3, 0.5, False, 0]]
    assert second["ratio"].tolist() == [pytest.approx(5)]
    assert "share" not in found.table
    reads_back(found)


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
    activations = Activations.from_tensors(**{role: {0: h} for role in ROLES})
    found = massive_activations(activations, magnitude=magnitude, ratio=ratio)
    (row,) = found.table.to_dict("records")
    assert (row["coordinate"], row["massive"], row["texts"]) == (2, met, 3 * met)
    assert (found.magnitude, found.ratio) == (magnitude, ratio)


def test_the_ratio_is_to_the_median_of_the_same_text_and_zeros_have_one():
    h = torch.full((2, 5), 0.1)
    h[1] = 10.0  # a loud text
    h[:, 3] = 300.0
    zeros = torch.zeros(2, 5)
    activations = Activations.from_tensors(**{role: {0: h, 1: zeros} for role in ROLES})
    table = massive_activations(activations).table
    assert (table["coordinate"].tolist(), table["texts"].tolist()) == ([3, 0], [3, 0])
    assert table[["largest", "ratio"]].iloc[1].tolist() == [0, 0]


@pytest.mark.parametrize(("ranks", "center"), [((1, 1), False), ((2, 5), True)])
def test_shares_of_a_subspace_over_all_coordinates_make_one(ranks, center):
    generator = torch.Generator().manual_seed(0)
    roles = {role: {k: torch.randn(N, D, generator=generator) + 0.5 for k in (0, 1)} for role in ROLES}
    activations = Activations.from_tensors(**roles)
    editor = fit_sea(activations, ranks=ranks, center=center, layers=[1])
    table = massive_activations(activations, editor, magnitude=1e-9, ratio=1e-9).table
    assert table["coordinate"].tolist() == [*range(D), *range(D)]
    edited = table[table["layer"] == 1]
    for side, rank in zip(("positive", "negative"), ranks, strict=True):
        assert table.loc[table["layer"] == 0, f"share_{side}"].isna().all()
        assert edited[f"share_{side}"].sum() == pytest.approx(1)
        neutral, other = (activations[role][1].double().numpy() for role in ("neutral", side))
        if center:
            neutral, other = neutral - neutral.mean(0), other - other.mean(0)
        basis = np.linalg.svd(neutral.T @ other)[0][:, :rank]
        np.testing.assert_allclose(edited[f"share_{side}"], (basis**2).sum(1) / rank, atol=1e-10)
    directions = editor[1].directions.double().numpy()
    np.testing.assert_allclose(edited["share"], (directions**2).sum(1) / sum(ranks), atol=1e-6)


def test_a_massive_coordinate_takes_the_whole_of_a_fit_by_any_method():
    roles = ones()
    roles["positive"][0][:, 6] = 400.0
    activations = Activations.from_tensors(**roles)
    difference = Editor({0: AffineEdit.of_shift((activations.positive[0] - activations.negative[0]).mean(0))})
    (row,) = massive_activations(activations, difference).table.to_dict("records")
    assert row["coordinate"] == 6
    assert row["share"] > 0.999
    assert "share_positive" not in row
    for role in ROLES:
        roles[role][0][:, 6] = 400.0
    activations = Activations.from_tensors(**roles)
    (row,) = massive_activations(activations, fit_sea(activations, ranks=1)).table.to_dict("records")
    assert row["coordinate"] == 6
    assert min(row["share_positive"], row["share_negative"]) > 0.999


def test_any_sites_and_two_sides_are_looked_at():
    heads = Site(0, "attn.hook_z")
    sides = {role: {heads: torch.ones(3, 4), 0: torch.ones(3, D)} for role in ("positive", "negative")}
    table = massive_activations(Activations.from_tensors(**sides)).table
    assert table["layer"].tolist() == [str(heads), str(Site(0))]


@pytest.mark.parametrize("criterion", [{"magnitude": 0.0}, {"ratio": -1.0}])
def test_a_criterion_of_numbers_above_zero_is_asked_for(llama, criterion):
    with pytest.raises(InputError, match="must be numbers above zero"):
        massive_activations(Activations.from_tensors(**ones()), **criterion)
    with pytest.raises(InputError, match="must be numbers above zero"):
        massive_tokens(llama, ["a"], **criterion)


# --- tokens of texts ---------------------------------------------------------------------------------------------------

COORDINATE = 5
TEXTS = ["aXb", "no such token in this longer text", "X", "bXX", "ab"]


@pytest.fixture(scope="module")
def planted():
    """A model to which the letter X, and padding, are massive at one coordinate."""
    model = build_bridge("llama")
    embedding = model.original_model.get_input_embeddings().weight
    tokenizer = model.tokenizer
    with torch.no_grad():
        for token in (tokenizer.convert_tokens_to_ids("X"), tokenizer.pad_token_id):
            embedding[token, COORDINATE] = -20_000.0
    return model


def test_the_planted_token_is_found_at_every_layer_and_padding_never(planted, reads_back):
    found = massive_tokens(planted, TEXTS)
    table = found.table
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
    for row in table[table["layer"] < N_LAYERS - 1].itertuples():  # its last hidden state is normed
        ids = torch.tensor([token_ids(planted, TEXTS[row.text])])
        with torch.no_grad():
            states = planted.original_model(ids, output_hidden_states=True).hidden_states
        hidden = states[row.layer + 1][0].double().numpy()
        h = hidden[row.position]
        assert row.value == pytest.approx(h[row.coordinate], rel=1e-5)
        entries = np.sort(np.abs(hidden).ravel())  # of the whole hidden state
        assert row.ratio == pytest.approx(abs(h[row.coordinate]) / entries[(len(entries) - 1) // 2], rel=1e-3)
        assert row.share == pytest.approx(h[row.coordinate] ** 2 / (h**2).sum(), rel=1e-5)
    reads_back(found)
    for batch_size in (1, 3):
        parts = massive_tokens(planted, TEXTS, batch_size=batch_size).table
        keys = ["layer", "text", "position", "token", "coordinate"]
        assert parts[keys].equals(table[keys])
        np.testing.assert_allclose(parts["value"], table["value"], rtol=1e-5)


def test_other_sites_are_looked_at_and_nothing_massive_gives_an_empty_table(planted):
    for site in ("mlp_out", "attn.hook_z"):  # it is the stream that carries the value
        table = massive_tokens(planted, ["aXb"], site=site).table
        assert table.empty
        assert list(table) == TOKEN_COLUMNS
    assert len(massive_tokens(planted, ["ab"], site="attn.hook_z", magnitude=1e-9, ratio=1e-9).table) > D_MODEL


@pytest.mark.usefixtures("without_type_checks")
def test_a_single_string_no_texts_and_long_ones_are_refused(llama):
    for texts in ("one text", [], ()):
        with pytest.raises(InputError, match=r"Give a list of texts, with at least one|texts must be a list of texts"):
            massive_tokens(llama, texts)
    with pytest.raises(InputError, match="Text 1 is "):
        massive_tokens(llama, ["a", "b" * 200])
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())


def test_what_is_constant_is_told_by_coordinate_and_kind_of_token(planted):
    found = massive_tokens(planted, TEXTS)
    rows = found.coordinates
    assert rows["coordinate"].tolist() == [COORDINATE] * len(rows)
    assert set(rows["kind"]) == {"other"}  # texts begin with a token of their own
    for row in rows.itertuples():
        own = found.table[(found.table["kind"] == row.kind) & (found.table["layer"] == row.layer)]["value"]
        assert (row.mean, row.std) == (pytest.approx(own.mean()), pytest.approx(own.std(ddof=0), abs=1e-6))
        assert (row.first_layer, row.last_layer) == (0, N_LAYERS - 1)
    assert found.layers.loc[0, "largest"] > 10_000 > found.layers.loc[0, "median"]


def test_the_layer_is_one_where_most_texts_have_it_and_different_tokens_are_counted():
    met = [(1, 0, "<s>", 150.0), (1, 1, "<s>", 150.0), (1, 2, "a", 180.0), (2, 2, "a", 900.0)]
    rows = [(layer, text, 0, token, "first", 7, value, 1e3, 0.5) for layer, text, token, value in met]
    table = pd.DataFrame(rows, columns=TOKEN_COLUMNS)
    (row,) = MassiveTokens(table, pd.DataFrame(), 100.0, 1000.0, 3).coordinates.to_dict("records")
    assert (row["layer"], row["texts"], row["tokens"], row["mean"]) == (1, 3, 2, pytest.approx(160))
    assert (row["first_layer"], row["last_layer"]) == (1, 2)


def test_kinds_of_tokens():
    words = ["<s>", "One", ".", " Two", ".", "\n"]
    assert kinds_of(words) == ["first", "other", "first delimiter", "other", "other", "other"]
    assert kinds_of([".", "a\n"]) == ["first", "first delimiter"]
    assert kinds_of([]) == []
