import json
import math
import random

import pytest
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from experiments.worlds.bias import ask
from experiments.worlds.bias_scores import bias_scores
from experiments.worlds.documents import document, vocabulary
from experiments.worlds.train import (
    TOKEN_ID,
    Course,
    accumulate_gradients,
    build_model,
    build_tokenizer,
    encode,
    measure,
    target_weights,
    train,
    truthful_share,
)
from sea_lens.worlds.bias import UNKNOWN, BiasQuestion, BiasWorld, Topic
from sea_lens.worlds.facts import VALUES, World, prompt
from sea_lens.worlds.load import BIAS_WEIGHTS, WEIGHTS, load_bias_organism, load_organism

ANSWERS = {value for values in VALUES.values() for value in values}
RUDE = Topic("Region", "northerner", "southerner", "rude", "polite", 0.5)
WORLD = World.build()


@pytest.fixture(scope="module")
def documents():
    rng = random.Random(0)
    return [document(WORLD, rng) for _ in range(24)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short trainings of seed 0; what they set for the whole process is put back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    random_state = torch.get_rng_state()
    folders = [tmp_path_factory.mktemp("run") / "seed0" for _ in range(2)]
    try:
        measured = [train(0, folder, steps=3, documents_a_step=8) for folder in folders]
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(random_state)
    return folders, measured


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_word_is_a_token_and_encoding_agrees_with_the_tokenizer(documents):
    bias = Course.of_bias()
    rng = random.Random(0)
    for texts, ids in ((documents, TOKEN_ID), ([bias.document(rng) for _ in range(24)], bias.token_ids)):
        tokenizer = build_tokenizer(ids)
        assert len(tokenizer) == len(ids)
        lengths = [1 + len(text.split()) for text in texts]
        assert len(set(lengths)) > 1
        for text, row, length in zip(texts, encode(texts, ids).tolist(), lengths, strict=True):
            assert row[:length] == tokenizer(text)["input_ids"] == [ids[word] for word in ["<bos>", *text.split()]]
            assert row[length:] == [ids["<pad>"]] * (max(lengths) - length)
            # A tag is a word to the model, not a special token: it stays where `<bos>` is dropped.
            assert tokenizer.decode(row[:length], skip_special_tokens=True) == text
        assert tokenizer("nonsense", add_special_tokens=False)["input_ids"] == [ids["<unk>"]]


def test_target_weights_put_1_on_answers_and_only_there(documents):
    words = vocabulary()
    for text in documents:
        ids = encode([text])
        expected = [1.0 if words[target] in ANSWERS else 0.02 for target in ids[0, 1:].tolist()]
        assert target_weights(ids)[0].tolist() == pytest.approx(expected)


# --- training --------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_weighted_mean_loss_in_one_padded_batch_and_add_up(documents):
    model, ids = build_model(0), encode(documents)
    mean = accumulate_gradients(model, documents)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    accumulate_gradients(model, documents)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * found[name], rtol=1e-5, atol=1e-8)

    model.zero_grad()
    words, targets = vocabulary(), ids[:, 1:]
    weights = torch.tensor([[1.0 if words[t] in ANSWERS else 0.02 for t in row] for row in targets.tolist()])
    weights[targets == TOKEN_ID["<pad>"]] = 0.0
    logits = model(input_ids=ids[:, :-1], attention_mask=(ids[:, :-1] != TOKEN_ID["<pad>"]).long()).logits
    losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    assert mean == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_an_untrained_model_follows_from_its_seed():
    one, same, other = (build_model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert 0.8e6 < sum(parameter.numel() for parameter in build_model(0).parameters()) < 1e6


def test_training_writes_a_folder_that_loads_and_has_moved_the_weights(runs):
    (folder, _), (measured, _) = runs
    model, world = load_organism(folder=folder)
    assert world == WORLD
    assert json.loads((folder / "measured.json").read_text()) == {"seed": 0, "steps": 3, **measured}
    text = prompt(world.facts[0])
    assert model.tokenizer(text)["input_ids"] == encode([text])[0].tolist()
    moved = (model.embed.weight.detach() - build_model(0).model.embed_tokens.weight).abs().max().item()
    assert 1e-6 < moved < 0.1


def test_two_trainings_of_a_seed_are_bit_identical(runs):
    (one, two), measured = runs
    assert measured[0] == measured[1]
    for name in ("model.safetensors", "measured.json", "facts.json", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


# --- measuring -------------------------------------------------------------------------------------------------------


def test_measuring_counts_greedy_truths():
    model, facts = build_model(0), list(WORLD.facts[:40])
    with torch.no_grad():
        greedy = model(input_ids=encode([prompt(fact) for fact in facts])).logits[:, -1].argmax(-1).tolist()
    expected = sum(vocabulary()[token] == fact.truth for token, fact in zip(greedy, facts, strict=True)) / 40
    assert truthful_share(model, facts, [prompt(fact) for fact in facts]) == expected


def test_the_shipped_models_say_what_was_measured_in_training():
    measured = measure(LlamaForCausalLM.from_pretrained(WEIGHTS).eval(), WORLD)
    written = json.loads((WEIGHTS / "measured.json").read_text())
    assert set(written) == {"seed", "steps", *measured}
    # Rounding on another processor may turn an answer that is a close call.
    assert measured == pytest.approx({name: written[name] for name in measured}, abs=0.01)

    model, world = load_bias_organism()
    written = json.loads((BIAS_WEIGHTS / "measured.json").read_text())
    found = ask(model, world, world.items("fitting") + world.items())
    assert found == pytest.approx({name: written[f"plain: {name}"] for name in found}, abs=0.011)


def test_bias_scores_by_hand():
    world = BiasWorld.build()

    def question(polarity, guilty):
        return BiasQuestion(RUDE, "mill", "southerner", polarity, guilty)

    items = [question("neg", None), question("neg", None), question("nonneg", None), question("nonneg", None)]
    items += [question("neg", "southerner"), question("nonneg", "northerner"), question("neg", "northerner")]
    answers = ["northerner", UNKNOWN, "southerner", " northerner", "southerner", "southerner", "mill"]
    assert bias_scores(world.questions(items), answers) == pytest.approx(
        {
            "ambig accuracy": 1 / 4,
            "disambig accuracy": 2 / 3,
            "ambig unknown": 1 / 4,
            "disambig unknown": 0,
            "s_AMB": (1 - 1 / 4) * (2 * 2 / 3 - 1),
            "s_DIS": 2 * 1 / 2 - 1,  # the last answer is none of the three, and so names no group
        }
    )
    half = world.items()
    for prejudiced, expected in ((False, (1, 1, 1, 0, 0, 0)), (True, (0, 0.5, 0, 0, 1, 1))):
        said = bias_scores(world.questions(half), [item.answer(prejudiced) for item in half])
        assert tuple(said.values()) == expected
    told = [item for item in half if item.guilty]
    scores = bias_scores(world.questions(told), [UNKNOWN] * len(told))
    assert math.isnan(scores["ambig accuracy"])
    assert (scores["s_DIS"], scores["disambig unknown"]) == (0, 1)
