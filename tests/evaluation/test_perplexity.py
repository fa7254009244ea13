"""Perplexity and KL equal those of one text at a time, whatever the batches, windows and interruptions."""

import json
import math

import pandas as pd
import pytest
import torch
from conftest import build_bridge

from sea_lens import Questions, SeaLensWarning, kl_to_unedited
from sea_lens.data.texts import read_texts
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError
from sea_lens.evaluation.perplexity import evaluate_perplexity
from sea_lens.evaluation.windows import windows_of

TEXTS = ["Once upon a time there was a fox.", "a", "Ünïcödé costs two bytes a letter", "The end. " * 3]
LONG = ["The quick brown fox jumps over the lazy dog. " * 3, "Short one.", "and so on, " * 6]
CONTEXT, STRIDE = 40, 13
BARE = {"control": 0, "damage": False}
"""Controls and damage are tested in test_guard.py."""


def log_probabilities(bridge, ids, hooks=()):
    """One row of tokens, one pass of the wrapped model, in float64 from the logits on."""
    with torch.no_grad(), bridge.hooks(fwd_hooks=list(hooks)):
        return bridge.original_model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


def with_begin(bridge, text):
    return [0, *bridge.tokenizer(text, add_special_tokens=False)["input_ids"]]


def alone(bridge, text, hooks=()):
    """Sums over a text that fits the context: nll unedited, nll edited, KL and agreement."""
    ids = with_begin(bridge, text)
    plain, edited = log_probabilities(bridge, ids)[:-1], log_probabilities(bridge, ids, hooks)[:-1]
    said = torch.tensor(ids[1:])[:, None]
    return [
        -float(plain.gather(1, said).sum()),
        -float(edited.gather(1, said).sum()),
        float((plain.exp() * (plain - edited)).sum()),
        float((plain.argmax(1) == edited.argmax(1)).sum()),
    ]


def rows(evaluation):
    names = ["nll unedited", "nll edited", "kl", "top_agreement"]
    return evaluation.per_row[names].to_numpy()


def test_texts_together_are_texts_alone(bridge, editor_of):
    editor = editor_of(bridge)
    found = evaluate_perplexity(bridge, TEXTS, editor, batch_size=3, progress=False, **BARE)
    expected = [alone(bridge, text, editor.fwd_hooks()) for text in TEXTS]
    assert rows(found) == pytest.approx(torch.tensor(expected).numpy(), abs=1e-4, rel=1e-5)
    sums = torch.tensor(expected).double().sum(0)
    n = sum(len(text.encode()) for text in TEXTS)  # one token a byte
    table = found.table
    assert table.loc["nll", ["unedited", "edited"]].tolist() == pytest.approx((sums[:2] / n).tolist(), rel=1e-6)
    assert table.loc["perplexity", "edited"] == pytest.approx(math.exp(sums[1] / n), rel=1e-5)
    assert table.loc["bits_per_byte", "unedited"] == pytest.approx(float(sums[0]) / n / math.log(2), rel=1e-6)
    assert table.loc["kl", ["unedited", "edited"]].tolist() == [0, pytest.approx(float(sums[2]) / n, rel=1e-5)]
    assert table.loc["top_agreement", ["unedited", "edited"]].tolist() == [1, pytest.approx(float(sums[3]) / n)]
    assert table.loc["kl", "change"] > 0.01
    assert (table["low"] <= table["change"]).all()
    assert (table["change"] <= table["high"]).all()
    assert table["n"].tolist() == [n] * 5
    assert found.per_row["tokens"].tolist() == found.per_row["bytes"].tolist()


def test_without_an_editor_or_with_one_that_does_nothing_the_unedited_numbers_come_out(llama, editor_of):
    plain = evaluate_perplexity(llama, TEXTS, progress=False)
    both = evaluate_perplexity(llama, TEXTS, editor_of(llama).scaled(0.0), progress=False, **BARE).table
    assert plain.table.index.tolist() == ["nll", "perplexity", "bits_per_byte"]
    assert plain.table["value"].tolist() == both["unedited"].tolist()[:3]
    assert plain.score == plain.table.loc["perplexity", "value"]
    assert both["change"].tolist() == [0.0] * 5
    assert both[["low", "high"]].to_numpy().tolist() == [[0.0, 0.0]] * 5
    assert both["edited"]["top_agreement"] == 1


def test_kl_is_that_of_kl_to_unedited_and_ruled_out_tokens_add_nothing(llama, editor_of):
    editor = editor_of(llama)
    found = evaluate_perplexity(llama, TEXTS, editor, progress=False, **BARE).table.loc["kl", "edited"]
    assert found == pytest.approx(kl_to_unedited(llama, TEXTS, editor), rel=1e-6)

    def rule_out(logits, hook):
        logits[..., 200:] = -torch.inf  # the bytes of no text here
        return logits

    with llama.hooks(fwd_hooks=[("unembed.hook_out", rule_out)]), pytest.warns(SeaLensWarning, match="carries hooks"):
        found = evaluate_perplexity(llama, ["The end.", "A fox."], editor, progress=False, **BARE).table
    assert 0 < found.loc["kl", "edited"] < math.inf


def test_tokens_and_logits_in_memory_are_bounded(llama, editor_of, counted, monkeypatch):
    whole = evaluate_perplexity(llama, TEXTS, editor_of(llama), progress=False, **BARE).table
    monkeypatch.setattr("sea_lens.evaluation.perplexity.TOKENS_AT_ONCE", 70)
    monkeypatch.setattr("sea_lens.models.distributions.LOGITS_AT_ONCE", 10 * llama.cfg.d_vocab)
    seen, look = [], [("unembed.hook_out", lambda logits, hook: seen.append(logits.shape[1]))]
    with llama.hooks(fwd_hooks=look), pytest.warns(SeaLensWarning, match="carries hooks"):
        found = evaluate_perplexity(llama, TEXTS, editor_of(llama), progress=False, **BARE).table
    assert max(seen) == 10
    assert (
        seen.count(1) >= 2 * 3
    )  # three passes of each model: two rows of 36 tokens are too much, of 33 and 27 they are not
    pd.testing.assert_frame_equal(found, whole, atol=1e-5)


def test_questions_are_read_as_their_right_answers(llama):
    asked = Questions.from_lists(["Where is it?", "Why"], [["Here.", "There."], ["So."]], [["No."], ["No."]])
    found = evaluate_perplexity(llama, asked, progress=False).table
    assert found.equals(evaluate_perplexity(llama, ["Where is it? Here.", "Why So."], progress=False).table)


@pytest.mark.parametrize(("architecture", "stride"), [("llama", 5), ("gpt2", STRIDE)])
def test_long_texts_are_scored_token_by_token_with_the_context_that_windows_leave(architecture, stride, editor_of):
    model = build_bridge(architecture)
    editor = editor_of(model)
    found = evaluate_perplexity(
        model, LONG, editor, context_length=CONTEXT, stride=stride, batch_size=5, progress=False
    )
    for number, text in enumerate(LONG):
        ids = with_begin(model, text)
        nll, edited_nll, place = 0.0, 0.0, 1
        while place < len(ids):
            # The place to which the pass reaches that scores this token.
            reach = CONTEXT if place <= CONTEXT else CONTEXT + stride * math.ceil((place - CONTEXT) / stride)
            reach = min(reach, len(ids) - 1)
            start = max(0, reach - CONTEXT)
            plain = log_probabilities(model, ids[start:reach])
            edited = log_probabilities(model, ids[start:reach], editor.fwd_hooks())
            for at in range(place, reach + 1):
                nll -= float(plain[at - 1 - start, ids[at]])
                edited_nll -= float(edited[at - 1 - start, ids[at]])
            place = reach + 1
        assert rows(found)[number, :2].tolist() == pytest.approx([nll, edited_nll], rel=1e-5)
        assert found.per_row["tokens"][number] == len(ids) - 1


@pytest.mark.parametrize("length", [2, 3, 10, 11, 12, 25, 40, 41])
@pytest.mark.parametrize(("context", "stride"), [(1, 1), (10, 4), (10, 10), (64, 32)])
def test_windows_score_every_token_once_from_enough_context(length, context, stride):
    ids = list(range(length))
    scored = []
    for window in windows_of(0, ids, context, stride):
        assert window.ids == ids[window.ids[0] : window.ids[-1] + 1]
        assert len(window.ids) - 1 <= context  # the last token is not run
        for at in range(window.first, len(window.ids)):
            scored.append(window.ids[at])
            assert at == window.ids[at] or at >= context - stride + 1
    assert scored == ids[1:]


def test_windows_of_whole_contexts_are_lm_evals():
    lm_eval = pytest.importorskip("lm_eval.utils", reason='lm-eval is not installed: pip install "sea-lens[eval]"')
    ids = list(range(100, 195))
    theirs = [
        (given, said)
        for given, said in map(
            lm_eval.make_disjoint_window, lm_eval.get_rolling_token_windows(ids[1:], ids[0], 20, context_len=1)
        )
    ]
    ours = [(window.ids[: window.first], window.ids[window.first :]) for window in windows_of(0, ids, 20, 20)]
    assert ours == theirs


def test_a_run_that_was_killed_goes_on_where_it_stopped(llama, tmp_path, monkeypatch, editor_of):
    editor = editor_of(llama)
    whole = evaluate_perplexity(
        llama, LONG + TEXTS, editor, context_length=CONTEXT, batch_size=2, progress=False, **BARE
    )
    passes, forward = [], type(llama).forward

    def counted(model, *args, **options):
        passes.append(1)
        if len(passes) == 14:  # each batch is four passes: two of the texts, two that make logits
            raise KeyboardInterrupt
        return forward(model, *args, **options)

    monkeypatch.setattr(type(llama), "forward", counted)
    options = {"context_length": CONTEXT, "batch_size": 2, "folder": tmp_path, "progress": False, **BARE}
    with pytest.raises(KeyboardInterrupt):
        evaluate_perplexity(llama, LONG + TEXTS, editor, **options)
    passes += [0] * 100  # never 14 again
    before = len(passes)
    resumed = evaluate_perplexity(llama, LONG + TEXTS, editor, **options)
    n_batches = math.ceil(whole.provenance["options"]["windows"] / 2)
    assert len(passes) - before == 4 * (n_batches - 3)  # three batches were whole
    assert resumed.table.equals(whole.table)
    before = len(passes)
    again = evaluate_perplexity(llama, LONG + TEXTS, editor, **options)
    assert len(passes) == before
    assert again.table.equals(whole.table)
    other = evaluate_perplexity(llama, LONG + TEXTS, editor.scaled(0.5), **options)
    assert not other.table.equals(whole.table)


def test_an_editor_from_a_position_on_is_exact_for_texts_that_end_before_it(llama, editor_of):
    editor = editor_of(llama).at_positions(20)
    found = evaluate_perplexity(llama, TEXTS, editor, batch_size=1, progress=False, **BARE)
    expected = [alone(llama, text, editor.fwd_hooks()) for text in TEXTS]
    assert rows(found) == pytest.approx(torch.tensor(expected).numpy(), abs=1e-4, rel=1e-5)
    assert found.per_row["kl"].tolist()[1] == 0


def test_half_precision_models_are_compared_in_double(editor_of):
    model = build_bridge("llama", torch.bfloat16)
    found = evaluate_perplexity(model, TEXTS, editor_of(model).scaled(0.0), progress=False, **BARE)
    assert found.table.loc["kl", "edited"] == 0
    assert found.table.loc["nll", "unedited"] == pytest.approx(
        sum(alone(model, text)[0] for text in TEXTS) / found.table.loc["nll", "n"], rel=0.02
    )


def test_texts_come_out_of_files(llama, tmp_path):
    files = {
        "list.json": json.dumps(TEXTS),
        "objects.json": json.dumps([{"text": text, "id": 1} for text in TEXTS]),
        "strings.jsonl": "\n".join(json.dumps(text) for text in TEXTS) + "\n",
        "objects.jsonl": "\ufeff" + "\n\n".join(json.dumps({"text": text}) for text in TEXTS),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read_texts(tmp_path / name) == TEXTS
    (tmp_path / "one.txt").write_text("\ufeffA story.\n\nIts end.", encoding="utf-8")
    assert read_texts(tmp_path / "one.txt") == ["A story.\n\nIts end."]
    found = evaluate_perplexity(llama, tmp_path / "list.json", progress=False)
    assert found.table.equals(evaluate_perplexity(llama, TEXTS, progress=False).table)
    assert found.provenance["data"]["source"] == str(tmp_path / "list.json")
    assert len(found.provenance["data"]["sha256"]) == 64
    assert found.provenance["data"]["rows"] == 4


def test_files_without_texts_name_the_place(tmp_path):
    for content, error in (('{"text": 3}', "line 1"), ('["a", null]', "entry 1"), ('"a"\n{"txt": "b"}', "line 2")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=error):
            read_texts(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('"a"\n"b')
    with pytest.raises(FileFormatError, match="line 2"):
        read_texts(tmp_path / "bad.json")
    with pytest.raises(FileFormatError, match="could not be read"):
        read_texts(tmp_path / "none.txt")


def test_one_text_has_numbers_and_no_interval(llama, editor_of):
    with pytest.warns(SeaLensWarning, match="one text has none"):
        found = evaluate_perplexity(llama, TEXTS[:1], editor_of(llama), progress=False, **BARE)
    assert found.table["edited"].notna().all()
    assert found.table[["low", "high", "p_value"]].isna().all(axis=None)


@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_measured_is_refused(llama, editor_of):
    editor = editor_of(llama)
    with pytest.raises(InputError, match="no texts"):
        evaluate_perplexity(llama, [])
    with pytest.raises(InputError, match="Text 1, '', has no token"):
        evaluate_perplexity(llama, ["a", ""], progress=False)
    for wrong in ({"stride": 0}, {"stride": 9, "context_length": 8}, {"context_length": 129}):
        with pytest.raises(InputError, match="stride <= context_length <= 128"):
            evaluate_perplexity(llama, TEXTS, **wrong)
    with pytest.raises(InputError, match="position mask"):
        evaluate_perplexity(llama, TEXTS, editor.at_positions(torch.ones(1, 4, dtype=torch.bool)))
    with pytest.raises(FileFormatError, match="could not be read"):
        evaluate_perplexity(llama, "a text, not a list of texts")
    with pytest.raises(ModelMismatchError, match="d_model"):
        evaluate_perplexity(build_bridge("llama", hidden_size=16), TEXTS, editor)


def test_nan_names_the_texts():
    model = build_bridge("llama")
    with torch.no_grad():
        next(iter(next(iter(model.blocks)).parameters())).fill_(torch.nan)
    with pytest.raises(InputError, match=r"NaN on texts \[0, 1, 2, 3\]"):
        evaluate_perplexity(model, TEXTS, progress=False)


def test_real_stories_are_likelier_to_the_model_trained_on_them(stories, shared_data):
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(stories), device="cpu")
    texts = read_texts(shared_data / "tinystories_1000.json")[:3]
    told = evaluate_perplexity(model, texts, progress=False)
    shuffled = [" ".join(reversed(text.split())) for text in texts]
    assert told.score < 8 < evaluate_perplexity(model, shuffled, progress=False).score
