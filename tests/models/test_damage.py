"""Damage, against perplexity and KL by hand, on an edit that is harmless and on one that breaks the embedded model."""

import math
import warnings

import pandas as pd
import pytest
import torch
from conftest import D_MODEL, EMBEDDED, N_LAYERS, build_bridge, make_editor

from sea_lens import (
    SEA,
    AffineEdit,
    BrokenModelWarning,
    Damage,
    DamageLimits,
    DamageMeter,
    Editor,
    collect_activations,
    evaluate_perplexity,
    kl_to_unedited,
    measure_damage,
    neutral_texts,
)
from sea_lens.errors import InputError
from sea_lens.models.branching import BranchingRuns, Unembedding
from sea_lens.models.damage import TOKENS_PER_TEXT
from sea_lens.models.repetition import repetition
from tests.models.test_divergence import kl_by_hand

TEXTS = ["Q: what color is the sea? A:", "a text", "The sky is"]
PROMPTS = ["ab", "Q: a longer one", "x y z", "four"]


@pytest.fixture(scope="module")
def organism():
    """The embedded model, its world, and a fit."""
    model, world = EMBEDDED["load_organism"]()
    data = world.demonstrations()[:60].with_neutral_answers(model, max_new_tokens=1, progress=False)
    return model, world, SEA(0.5, center=True).fit(collect_activations(model, data, progress=False)).first_layers(3)


@torch.no_grad()
def nll_by_hand(model, text, hooks=()):
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[0, *ids] if model.cfg.default_prepend_bos else ids])
    with model.hooks(fwd_hooks=list(hooks)):
        logits = model(ids, use_cache=False)[0].double()
    return (-logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]).tolist()


def test_perplexity_and_kl_are_those_of_every_token_by_hand(llama):
    editor = make_editor()
    found = measure_damage(llama, TEXTS[:1], editor, texts=TEXTS[1:], examples=0, limits=DamageLimits(99.0, 99.0, 1.0))
    for kind, texts in {"prompts": TEXTS[:1], "neutral text": TEXTS[1:]}.items():
        row = found.table.loc[kind]
        plain = [value for text in texts for value in nll_by_hand(llama, text)]
        edited = [value for text in texts for value in nll_by_hand(llama, text, editor.fwd_hooks(llama))]
        kl = [value for text in texts for value in kl_by_hand(llama, editor, text)[:-1]]
        assert row["tokens"] == len(plain)
        assert row["unedited"] == pytest.approx(math.exp(sum(plain) / len(plain)), rel=1e-5)
        assert row["edited"] == pytest.approx(math.exp(sum(edited) / len(edited)), rel=1e-5)
        assert row["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert found.kl == found.table["kl"].max()


def test_there_is_one_kl_under_one_name(llama):
    editor = make_editor()
    by_damage = measure_damage(llama, (), editor, texts=TEXTS, examples=0, limits=DamageLimits(99.0, 99.0, 1.0)).kl
    assert by_damage == pytest.approx(kl_to_unedited(llama, TEXTS, editor), rel=1e-12)
    evaluation = evaluate_perplexity(llama, TEXTS, editor, control=0, damage=False, progress=False)
    assert evaluation.table.at["kl", "edited"] == pytest.approx(by_damage, rel=1e-6)


def test_a_good_edit_is_harmless_and_eight_times_its_strength_breaks_the_model(organism):
    model, world, editor = organism
    prompts = [question.prompt for question in world.questions()]
    meter = DamageMeter.of(model, prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmless = meter.measure(editor, examples=2, max_new_tokens=2)
        harmless.warn()
    assert (harmless.is_broken, harmless.finding, len(harmless.examples)) == (False, "", 2)
    broken = meter.measure(editor.scaled(16.0))
    assert broken.is_broken
    assert broken.kl > 2 > harmless.kl
    with pytest.warns(BrokenModelWarning, match=r"breaks the model: .*nats per token \(limit 1\)"):
        measure_damage(model, prompts[:4], editor.scaled(16.0), examples=0)


def test_a_model_that_predicts_nan_is_broken_and_not_an_error():
    infinite = torch.full((D_MODEL,), 3e38)
    editor = Editor({layer: AffineEdit.of_shift(infinite) for layer in (0, 1)}).scaled(9.0)
    found = DamageMeter.of(build_bridge("gpt2"), TEXTS).measure(editor)
    assert found.is_broken
    assert math.isinf(found.kl)


def test_no_edit_costs_nothing_and_text_it_does_not_reach_counts_as_unchanged(llama):
    found = DamageMeter.of(llama, TEXTS).measure(make_editor(strength=0.0))
    assert (found.kl, found.perplexity_ratio, found.is_broken) == (0.0, 1.0, False)
    late = DamageMeter.of(llama, TEXTS, ["ab", "abc" * 9]).measure(make_editor().at_positions(20))
    assert late.table.at["neutral text", "kl"] > 0
    alone = DamageMeter.of(llama, (), ["abc" * 9]).measure(make_editor().at_positions(20))
    n_short, n_long = 2, 27
    share = n_long / (n_short + n_long)
    assert late.table.at["neutral text", "kl"] == pytest.approx(alone.kl * share, rel=1e-5)


def test_results_depend_on_no_batch_size_and_are_saved(llama, tmp_path):
    editor = make_editor()
    found = [DamageMeter.of(llama, TEXTS, TEXTS, batch_size=size).measure(editor, examples=2) for size in (1, 16)]
    assert found[0].kl == pytest.approx(found[1].kl, rel=1e-5)
    found[0].save(tmp_path)
    again = Damage.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, found[0].table)
    pd.testing.assert_frame_equal(again.examples, found[0].examples)
    assert again.limits == found[0].limits


def test_the_shipped_sample_is_read_by_models_that_know_its_words(llama, organism):
    sample = neutral_texts(llama)
    assert len(sample) == 20
    assert neutral_texts(organism[0]) == organism[1].neutral_texts()
    tokens = DamageMeter.of(build_bridge("llama", max_position_embeddings=16), ()).predictions["neutral text"].rows
    assert max(map(len, tokens)) == min(16, TOKENS_PER_TEXT)


def test_repetition_counts_pairs_that_stood_there_before():
    assert repetition("abab") == pytest.approx(1 / 3)
    assert (repetition("abc"), repetition("a"), repetition("")) == (0, 0, 0)
    assert repetition("a" * 21) == pytest.approx(19 / 20)


def test_texts_are_lists_and_limits_above_zero(llama):
    with pytest.raises(InputError, match="list of texts"):
        measure_damage(llama, "one text", make_editor())
    with pytest.raises(InputError, match="above zero"):
        DamageLimits(kl=0.0)


def test_an_edit_of_what_is_generated_costs_what_it_does_to_text_after_its_first_token(llama):
    meter = DamageMeter.of(llama, TEXTS, TEXTS)
    generated, later = (meter.measure(make_editor().at_positions(where), examples=1) for where in ("generated", 1))
    assert generated.kl == pytest.approx(later.kl, rel=1e-6)
    assert generated.kl > 0.01
    late = meter.measure(make_editor().at_positions(100), examples=2, max_new_tokens=2)
    assert late.kl == 0
    assert late.examples["edited"].tolist() == late.examples["unedited"].tolist()


def test_an_edit_of_the_last_token_costs_what_it_does_in_the_middle_of_text(llama):
    texts = ["A longer text that is read here.", "Another one of these"]
    meter, editor = DamageMeter.of(llama, texts, []), make_editor().at_positions([-1])
    found = meter.measure(editor)
    sums, tokens = 0.0, 0
    for text in texts:
        ids = llama.to_tokens(text)
        length = -(-ids.shape[1] // 2)
        with torch.no_grad():
            before = llama(ids).log_softmax(-1).double()
            with make_editor().at_positions([length - 1]).attached(llama):
                after = llama(ids).log_softmax(-1).double()
        sums += float((before.exp() * (before - after)).sum(-1)[0, :-1].sum())
        tokens += ids.shape[1] - 1
    assert found.kl == pytest.approx(sums / tokens, rel=1e-4)
    assert found.kl > 1e-3
    assert meter.measure_all([editor])[0].kl == found.kl
    assert meter.measure(editor.scaled(0.0)).kl == 0


def test_an_infinite_kl_stays_infinite_and_is_broken(llama):
    """As where the edited model rules out what the other says."""
    found = DamageMeter.of(llama, (), TEXTS)

    def rule_out(tensor, hook):
        tensor[..., 5:90] = -torch.inf
        return tensor

    whole = found.measure(make_editor(strength=0.0))  # keeps the unedited model's predictions
    with pytest.MonkeyPatch.context() as patched:
        after = Unembedding(llama, [("unembed.hook_out", rule_out)])
        patched.setattr(BranchingRuns, "unembedding", lambda *_: after)  # as of an editor that acts on logits
        broken = found.measure(make_editor())
    assert whole.kl == 0
    assert broken.is_broken
    assert math.isinf(broken.kl)
    assert "KL inf nats per token" in broken.finding


def assert_together_as_each_alone(model, views):
    together = DamageMeter.of(model, PROMPTS[:2], TEXTS, batch_size=2).measure_all(views)
    meter = DamageMeter.of(model, PROMPTS[:2], TEXTS, batch_size=2)
    for found, view in zip(together, views, strict=True):
        pd.testing.assert_frame_equal(found.table, meter.measure(view).table, check_exact=True)
    assert together[0].kl > 0


def test_many_editors_are_measured_together_as_each_alone_to_the_bit(bridge):
    editor = make_editor(range(N_LAYERS))
    assert_together_as_each_alone(bridge, [editor, editor.last_layers(1), editor.first_layers(1)])


def test_editors_of_some_tokens_are_measured_together_too(llama):
    """Some texts are too short for the first, the second edits none, and rows of the third are run alone."""
    editor, inside = make_editor(range(N_LAYERS)), make_editor(range(N_LAYERS), "mlp_out", seed=1)
    views = [editor.at_positions(4), editor.at_positions(99), editor.at_positions(-1), editor.at_positions("generated")]
    assert_together_as_each_alone(llama, [*views, editor.scaled(0.0), inside, inside.without_layers([0])])


def test_a_first_look_takes_every_nth_text(llama):
    meter, editor = DamageMeter.of(llama, PROMPTS, [*TEXTS, "Another text."]), make_editor()
    fewer = meter.on_fewer(2)
    every = DamageMeter.of(llama, PROMPTS[::2], [*TEXTS, "Another text."][::2])
    pd.testing.assert_frame_equal(fewer.measure(editor).table, every.measure(editor).table)
    assert fewer.limits == meter.limits


@pytest.mark.usefixtures("without_type_checks")
def test_questions_in_the_place_of_their_prompts_are_refused():
    model, world = EMBEDDED["load_organism"]()
    with pytest.raises(InputError, match="prompts must be a list of texts, and a Questions was given"):
        measure_damage(model, world.questions()[:3], make_editor())
