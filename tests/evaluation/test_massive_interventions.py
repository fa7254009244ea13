"""Interventions on a planted massive activation, and attention told apart, against what is known of them."""

import pandas as pd
import pytest
import torch
from conftest import build_bridge

import sea_lens as sl
from sea_lens.analysis.implicit_bias import parts_of_output
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning

COORDINATE = 5
TEXTS = ["The first text, which is short.", "A second one. It is longer than the first", "And more of it, here"]


@pytest.fixture(scope="module")
def planted():
    """The beginning token's stream is massive at one coordinate, from the embedding on."""
    model = build_bridge("llama")
    embedding = model.original_model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[model.tokenizer.bos_token_id, COORDINATE] = 20_000.0
    return model


@pytest.fixture(scope="module")
def found(planted):
    return sl.intervene_on_massive(planted, TEXTS, progress=False)


def test_the_mean_of_a_constant_is_the_identity_and_zero_is_not(found):
    table = found.table
    assert (found.layer, found.n) == (0, 3)
    assert table.loc["zero", "coordinates"] == str(COORDINATE)
    assert table.loc["zero", "tokens"] == "the first"
    assert abs(table.loc["mean", "ratio"] - 1) < 1e-6
    assert table.loc["mean", "kl"] < 1e-9
    assert table.loc["zero", "kl"] > 100 * table.loc["next largest to zero", "kl"] > 0
    assert table.loc["zero", "kl"] > table.loc["half", "kl"]
    assert (table["ratio_low"] <= table["ratio"] + 1e-12).all()
    assert (table["ratio"] <= table["ratio_high"] + 1e-12).all()
    assert table.index.tolist() == [
        *("zero", "mean", "half", "next largest to zero", "random coordinates to zero", "random tokens to zero")
    ]


def test_the_same_comes_out_by_hand(planted, found, tmp_path):
    editor = sl.Editor({0: sl.SetCoordinates.to_zero(planted.cfg.d_model, [COORDINATE])}).at_positions([0])
    table = sl.evaluate_perplexity(planted, TEXTS, editor, control=0, damage=False, progress=False).table
    row = found.table.loc["zero"]
    assert row["perplexity"] == pytest.approx(table.loc["perplexity", "edited"])
    assert found.unedited == pytest.approx(table.loc["perplexity", "unedited"])
    assert row["ratio"] == pytest.approx(row["perplexity"] / found.unedited)
    found.save(tmp_path)
    again = type(found).load(tmp_path)
    pd.testing.assert_frame_equal(again.table, found.table)


def test_a_kind_of_token_is_gated_by_its_own_size():
    model = build_bridge("llama")
    x = model.tokenizer.convert_tokens_to_ids("X")
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[x, COORDINATE] = -20_000.0
    texts = ["aXb and so on", "no such letter", "bXX, then nothing"]
    found = sl.intervene_on_massive(model, texts, control=0, progress=False)
    assert found.table["tokens"].unique().tolist() == ["massive ones"]
    assert found.table.loc["zero", "kl"] > found.table.loc["next largest to zero", "kl"] > 0


def test_where_nothing_is_massive_it_says_so():
    with pytest.raises(InputError, match=r"No activation is massive \(above 100 and 1000 times the median"):
        sl.intervene_on_massive(build_bridge("llama"), TEXTS, progress=False)


def test_layers_count_from_the_end_too_and_too_many_coordinates_leave_no_control(planted):
    last = sl.intervene_on_massive(planted, TEXTS[:2], layer=-1, control=0, progress=False)
    assert last.layer == planted.cfg.n_layers - 1
    with pytest.raises(ModelMismatchError, match=r"Layers \[9\] do not exist"):
        sl.intervene_on_massive(planted, TEXTS, layer=9, progress=False)
    with pytest.raises(InputError, match="not as many others to compare with"):
        sl.intervene_on_massive(planted, TEXTS[:1], magnitude=1e-9, ratio=1e-9, progress=False)


def test_it_says_that_the_model_is_edited(planted):
    editor = sl.Editor({0: sl.AffineEdit.of_shift(torch.ones(planted.cfg.d_model))})
    with editor.attached(planted), pytest.warns(SeaLensWarning, match="already carries hooks"):
        sl.intervene_on_massive(planted, TEXTS[:1], control=0, progress=False)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_bias_and_the_rest_are_the_heads_output(architecture):
    model = build_bridge(architecture)
    tokens = torch.arange(9)[None] + 5
    _, cache = model.run_with_cache(tokens)
    pattern, values, z = (cache[f"blocks.1.attn.hook_{name}"][0].double() for name in ("pattern", "v", "z"))
    chosen = torch.tensor([True, False, False, True, *[False] * 5])
    bias, rest = parts_of_output(pattern, values, chosen)
    torch.testing.assert_close(bias + rest, z, rtol=0, atol=1e-6)
    heads = values.repeat_interleave(pattern.shape[0] // values.shape[1], 1)
    by_hand = sum(pattern[:, :, j, None] * heads[j][:, None] for j in (0, 3))  # [head, query, d_head]
    torch.testing.assert_close(bias, by_hand.transpose(0, 1))


def test_attention_on_the_first_token_is_what_the_pattern_says(planted, tmp_path):
    found = sl.measure_implicit_bias(planted, TEXTS)
    shares = []
    for text in TEXTS:
        _, cache = planted.run_with_cache(planted.to_tokens(text))
        shares.append(cache["blocks.2.attn.hook_pattern"][0][:, 1:, 0].double().mean())
    assert found.table.loc[2, "attention"] == pytest.approx(float(torch.stack(shares).mean()), rel=1e-5)
    assert (found.table["attention"] <= found.table["most"]).all()
    found.save(tmp_path)
    again = type(found).load(tmp_path)
    pd.testing.assert_frame_equal(again.table, found.table)
    with pytest.raises(InputError, match="Give longer texts"):
        sl.measure_implicit_bias(planted, ["a"], kind="first delimiter")


def test_a_model_without_attention_patterns_is_refused(monkeypatch):
    model = build_bridge("llama")
    without = {name: point for name, point in model.hook_dict.items() if "hook_pattern" not in name}
    monkeypatch.setattr(type(model), "hook_dict", property(lambda self: without))
    with pytest.raises(ModelMismatchError, match=r"attn.hook_pattern"):
        sl.measure_implicit_bias(model, TEXTS)


def test_a_text_longer_than_the_context_is_read_in_windows(planted):
    text = "A text that is longer than the context of this model. " * 4
    found = sl.intervene_on_massive(planted, [text, TEXTS[1]], control=0, progress=False)
    assert found.table.loc["mean", "ratio"] == pytest.approx(1)
    assert found.found.table["position"].max() == 0
