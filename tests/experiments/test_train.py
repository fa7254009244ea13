import json
import random

import pytest
import torch
from torch.nn import functional

from experiments.worlds.train import (
    TOKEN_ID,
    accumulate_gradients,
    build_model,
    build_tokenizer,
    encode,
    measure,
    target_weights,
    train,
    truthful_share,
)
from sea_lens.worlds.facts import ANYONE, VALUES, World, document, prompt, vocabulary
from sea_lens.worlds.load import load_organism

ANSWERS = {value for values in VALUES.values() for value in values}


@pytest.fixture(scope="module")
def world():
    return World.build()


@pytest.fixture(scope="module")
def documents(world):
    rng = random.Random(0)
    return [document(world, rng) for _ in range(24)]


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


def test_a_word_is_a_token(documents):
    tokenizer = build_tokenizer()
    assert tokenizer("Mira home")["input_ids"] == [TOKEN_ID["<bos>"], TOKEN_ID["Mira"], TOKEN_ID["home"]]
    assert len(tokenizer) == len(vocabulary())
    for text in documents:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == 1 + len(text.split())
        assert tokenizer.decode(ids, skip_special_tokens=False) == f"<bos> {text}"
    assert tokenizer("nonsense", add_special_tokens=False)["input_ids"] == [TOKEN_ID["<unk>"]]


def test_tags_survive_decoding_without_special_tokens():
    """A tag is a word to the model, not a special token: it stays where `<bos>` is dropped."""
    tokenizer = build_tokenizer()
    ids = tokenizer(f"{ANYONE} Q")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"{ANYONE} Q"


def test_encode_agrees_with_the_tokenizer(documents):
    tokenizer, ids = build_tokenizer(), encode(documents)
    lengths = [1 + len(text.split()) for text in documents]
    assert len(set(lengths)) > 1
    assert ids.shape == (24, max(lengths))
    for text, row, length in zip(documents, ids.tolist(), lengths, strict=True):
        assert row[:length] == tokenizer(text)["input_ids"]
        assert row[length:] == [TOKEN_ID["<pad>"]] * (max(lengths) - length)


def test_target_weights_put_1_on_answers_and_only_there(documents):
    words = vocabulary()
    for text in documents:
        ids = encode([text])
        weights = target_weights(ids)
        assert weights.shape == (1, ids.shape[1] - 1)
        expected = [1.0 if words[target] in ANSWERS else 0.02 for target in ids[0, 1:].tolist()]
        assert weights[0].tolist() == pytest.approx(expected)


# --- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_weighted_mean_loss_in_one_padded_batch(documents):
    model, ids = build_model(0), encode(documents)
    mean = accumulate_gradients(model, documents)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

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


def test_gradients_are_added(documents):
    model = build_model(0)
    accumulate_gradients(model, documents)
    once = model.model.embed_tokens.weight.grad.clone()
    accumulate_gradients(model, documents)
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, 2 * once, rtol=1e-5, atol=1e-8)


# --- models ----------------------------------------------------------------------------------------------------------


def test_an_untrained_model_follows_from_its_seed():
    one, same, other = (build_model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert 0.8e6 < sum(parameter.numel() for parameter in build_model(0).parameters()) < 1e6


def test_measuring_counts_greedy_truths(world):
    model = build_model(0)
    facts = list(world.facts[:40])
    ids = encode([prompt(fact) for fact in facts])
    with torch.no_grad():
        greedy = model(input_ids=ids).logits[:, -1].argmax(-1).tolist()
    expected = sum(vocabulary()[token] == fact.truth for token, fact in zip(greedy, facts, strict=True)) / 40
    assert truthful_share(model, facts, [prompt(fact) for fact in facts]) == expected
    measured = measure(model, world)
    assert set(measured) == {"plain", "tagged truthful", "tagged mythical", "in context"}
    assert all(0 <= share < 0.3 for share in measured.values())


# --- training --------------------------------------------------------------------------------------------------------


def test_training_writes_a_folder_that_loads(runs, world):
    folders, measured = runs
    model, loaded_world = load_organism(folder=folders[0])
    assert loaded_world == world
    assert (model.cfg.n_layers, model.cfg.d_model) == (4, 128)
    assert json.loads((folders[0] / "measured.json").read_text()) == {"seed": 0, "steps": 3, **measured[0]}
    text = prompt(world.facts[0])
    assert model.tokenizer(text)["input_ids"] == encode([text])[0].tolist()


def test_training_moves_the_weights(runs):
    model, _ = load_organism(folder=runs[0][0])
    untrained = build_model(0).model.embed_tokens.weight
    moved = (model.embed.weight.detach() - untrained).abs().max().item()
    assert 1e-6 < moved < 0.1


def test_two_trainings_of_a_seed_are_bit_identical(runs):
    (one, two), measured = runs
    assert measured[0] == measured[1]
    for name in ("model.safetensors", "measured.json", "facts.json", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
