"""What a view of tokens says, against separate runs with TransformerLens's own cache; and its page, which stands alone."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_bridge, make_editor

import sea_lens as sl
from sea_lens.errors import BrokenModelWarning, InputError

TEXT, ANSWER = "The sea is", " blue"


def caches(model, ids, editor):
    """Unedited and edited caches and log-probabilities, by `run_with_cache`."""
    found = []
    for hooks in ([], editor.fwd_hooks(model)):
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            logits, cache = model.run_with_cache(ids)
        found.append((logits[0].double().log_softmax(-1), cache))
    return found


def read_through_norm(model, state):
    """A logit lens written out: the model's final norm and its unembedding, as Hugging Face has them."""
    hf = model.original_model
    norm = next(
        getattr(hf.base_model, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(hf.base_model, name)
    )
    with torch.no_grad():
        logits = hf.get_output_embeddings()(norm(state[None, None]))[0, 0].double()
    cap = getattr(hf.config, "final_logit_softcapping", None)
    return (cap * torch.tanh(logits / cap) if cap else logits).softmax(-1)


@pytest.mark.parametrize(("architecture", "where"), [("llama", None), ("gpt2", 3), ("gemma2", "generated")])
def test_it_is_what_two_runs_with_a_cache_say(architecture, where):
    model = build_bridge(architecture)
    editor = make_editor().at_positions(where) if where is not None else make_editor()
    view = sl.view_tokens(model, TEXT, editor, answer=ANSWER, k=4, damage=False, lens="all")
    ids = model.tokenizer(TEXT + ANSWER, add_special_tokens=False)["input_ids"]
    ids = [0, *ids] if model.cfg.default_prepend_bos else ids
    assert view.n_prompt == len(ids) - len(ANSWER)
    n_edited = slice(view.n_prompt, None) if where == "generated" else slice(where or 0, None)
    oracle = make_editor().at_positions(slice(view.n_prompt, None)) if where == "generated" else editor
    (before, plain), (after, moved) = caches(model, torch.tensor([ids]), oracle)
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.hook_resid_post"
        far = (moved[name] - plain[name])[0].norm(dim=-1).numpy()
        rows = view.table[view.table["layer"] == layer]
        np.testing.assert_allclose(rows["displacement"], far, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows["share"], far / plain[name][0].norm(dim=-1).numpy(), rtol=1e-4, atol=1e-6)
        is_edited = np.isin(np.arange(len(ids)), np.arange(len(ids))[n_edited]) & (layer in editor.layers)
        assert ((rows["own"] > 0) == is_edited).all()
        for position in (0, len(ids) - 1):
            lens = view.lens[(view.lens["layer"] == layer) & (view.lens["position"] == position)]
            for side, cache in (("unedited", plain), ("edited", moved)):
                chances = read_through_norm(model, cache[name][0, position])
                np.testing.assert_allclose(lens[side], chances[lens["next_id"].tolist()], rtol=1e-4, atol=1e-6)
                assert set(chances.topk(4).indices.tolist()) <= set(lens["next_id"])
    kl = torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(view.tokens["kl"], kl, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        view.tokens["edited"].iloc[1:], after.exp()[range(len(ids) - 1), ids[1:]], rtol=1e-4, atol=1e-7
    )
    for position, rows in view.predictions.groupby("position"):
        for side, found in (("unedited", before), ("edited", after)):
            chances = found[position].exp()
            np.testing.assert_allclose(rows[side], chances[rows["next_id"].tolist()], rtol=1e-4, atol=1e-7)
            assert set(chances.topk(4).indices.tolist()) <= set(rows["next_id"])


def test_the_first_edit_moves_tokens_as_far_as_the_table_says(llama):
    editor = make_editor(layers=(1,))
    table = sl.view_tokens(llama, TEXT, editor, damage=False).table
    alone = table[table["layer"] == 1]
    np.testing.assert_allclose(alone["own"], alone["displacement"], rtol=1e-5)
    assert (table[table["layer"] == 0]["displacement"] == 0).all()


def test_the_sentence_and_the_table_count_after_the_same_layer(llama):
    view = sl.view_tokens(llama, TEXT, make_editor(layers=(0, 2), strength=1.5), damage=False)
    token = view.tokens.loc[view.tokens["share"].idxmax()]
    last = view.table[view.table["layer"] == view.table["layer"].max()].set_index("position")["share"]
    assert token["share"] == last.max()
    assert f"After the last layer, 2, it is {token['token']!r} (position {token['position']}) most, by " in view.finding
    assert f"by {token['share']:.0%} of its length" in view.finding
    own = view.table[view.table["position"] == token["position"]].set_index("layer")["share"]
    earlier = f"; after layer {own.idxmax()} it was {own.max():.0%}."
    assert (earlier in view.finding) == (own.idxmax() != 2)
    assert "share, layer 2" in repr(view)


@pytest.mark.parametrize(
    "editor", [make_editor().scaled(0.0), make_editor().at_positions("generated"), make_editor().at_positions(99)]
)
def test_an_edit_that_does_nothing_here_is_said_to(llama, editor):
    view = sl.view_tokens(llama, TEXT, editor, damage=False)
    assert view.moved == 0
    assert view.finding.startswith("The edit moves none of these 11 tokens")
    assert (view.tokens["kl"] == 0).all()
    assert "The edit moves none" in view._repr_html_()
    assert "The edit moves none" in repr(view)


class Page(HTMLParser):
    """Tags, what they refer to, and whether each is closed."""

    VOID = frozenset({"meta", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open, self.ids = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_its_page_stands_alone_and_shows_every_token(llama, tmp_path):
    prompt = "<script>alert(1)</script> & 'a'"
    view = sl.view_tokens(llama, prompt, make_editor(), damage=False)
    (path,) = view.save(tmp_path / "new" / "view.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.links == []
    assert not re.search(r"https?://|url\(|@import", text)
    assert len(page.ids) == len(set(page.ids)) == 1 + len(view.tokens)
    assert text.count("<label") == len(view.tokens)
    assert len(re.findall(r"<td class='[^']*' style", text)) == len(view.table)
    assert "prefers-color-scheme" in text


def test_it_reads_back_and_says_what_the_edit_costs(organism, tmp_path):
    model, _ = organism
    edit = sl.AffineEdit.of_shift(100 * torch.randn(128, generator=torch.Generator().manual_seed(0)))
    with pytest.warns(BrokenModelWarning, match="breaks the model"):
        view = sl.view_tokens(model, "<anyone> Q Bram job A", sl.Editor({1: edit}), k=2)
    assert "breaks the model" in repr(view)
    assert "breaks the model" in view._repr_html_()
    view.save(tmp_path / "view")
    found = sl.TokenView.load(tmp_path / "view")
    for name in ("table", "tokens", "predictions", "lens"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(view, name), check_exact=True)
    assert found.damage.kl == view.damage.kl
    assert (found.finding, found.layers, found.n_prompt) == (view.finding, view.layers, view.n_prompt)
    assert found._repr_html_() == view._repr_html_()


def test_a_long_text_is_drawn_at_its_end_and_kept_whole(llama, monkeypatch):
    monkeypatch.setattr("sea_lens.analysis.token_html.MOST_TOKENS", 5)
    view = sl.view_tokens(llama, "abcdefghij", make_editor(), damage=False, lens="none")
    assert len(view.tokens) == 11
    assert view._repr_html_().count("<label") == 5
    assert "The last 5 of 11 tokens" in view._repr_html_()
    assert view.lens.empty


def test_an_edit_that_overflows_is_shown_as_such():
    edit = sl.AffineEdit.of_shift(torch.full((32,), 3e38))
    view = sl.view_tokens(build_bridge("gpt2"), TEXT, sl.Editor({0: edit}), damage=False)
    assert np.isinf(view.tokens["kl"]).all()
    assert "overflow" in view._repr_html_()
    assert "overflow" in view.finding


def test_conversations_and_what_cannot_be(llama):
    with pytest.raises(InputError, match="no chat template"):
        sl.view_tokens(llama, [{"role": "user", "content": "Where?"}], make_editor())
    with pytest.raises(InputError, match="are for conversations"):
        sl.view_tokens(llama, "Where?", make_editor(), chat_options={"enable_thinking": False})
    with pytest.raises(InputError, match="context is 128"):
        sl.view_tokens(llama, "a" * 200, make_editor())
    with pytest.raises(InputError, match="k must be 1 to 258"):
        sl.view_tokens(llama, "a", make_editor(), k=500)


def test_an_editor_of_heads_moves_the_stream_after_them(llama):
    editor = make_editor(layers=(1,), site="attn.hook_z")
    view = sl.view_tokens(llama, TEXT, editor, damage=False)
    rows = view.table[view.table["layer"] == 1]
    assert (rows["own"] > 0).all()
    assert (rows["displacement"] > 0).all()
    assert "attn.hook_z of layers 1" in view.editor
