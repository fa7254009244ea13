import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, MistralConfig

from experiments.recipes import run
from experiments.recipes.costs import estimate
from experiments.recipes.published_data import BBQ, HALUEVAL, TRUTHFULQA, PublishedData, git_hash
from experiments.recipes.recipe import BEHAVIOURS, ModelSize, Recipe, shipped_models
from sea_lens import Demonstrations, Editor, Questions, collect_activations
from sea_lens.errors import FileFormatError, InputError, SeaLensWarning
from sea_lens.methods.sea.feature_space import KNOWN

GEMMA, LLAMA = {"head_dim": 256, "vocab_size": 256000}, {"vocab_size": 32000}
PUBLISHED = {
    "llama-2-7b-chat": LlamaConfig(**LLAMA),
    "llama-2-13b-chat": LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, **LLAMA
    ),
    "llama-2-70b-chat": LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        **LLAMA,
    ),
    "gemma-2b-it": GemmaConfig(
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        **GEMMA,
    ),
    "gemma-7b-it": GemmaConfig(**GEMMA),
    "mistral-7b-instruct": MistralConfig(num_key_value_heads=8, **LLAMA),
}
ALL = [(model, behaviour) for model in PUBLISHED for behaviour in BEHAVIOURS]


def test_the_papers_six_models_are_there():
    assert shipped_models() == sorted(PUBLISHED)


@pytest.mark.parametrize("model", PUBLISHED)
def test_sizes_are_those_of_the_architecture(model, tmp_path):
    PUBLISHED[model].save_pretrained(tmp_path)
    assert Recipe.load(model, "bias").size == ModelSize.of_folder(tmp_path)
    with torch.device("meta"):
        expected = sum(p.numel() for p in AutoModelForCausalLM.from_config(PUBLISHED[model]).parameters())
    assert Recipe.load(model, "truthfulness").size.parameters == expected


@pytest.mark.parametrize(("model", "behaviour"), ALL)
def test_every_recipe_follows_the_protocol(model, behaviour, tmp_path):
    recipe = Recipe.load(model, behaviour)
    truthful = behaviour == "truthfulness"
    assert recipe.n_demonstrations == (2000 if truthful else 1000)
    assert recipe.explained_variance == (0.998 if truthful else 0.9999)
    assert recipe.feature_map == (None if truthful else "SquaredExponential")
    assert recipe.feature_map is None or recipe.feature_map in KNOWN
    assert (recipe.token, recipe.site, recipe.merge, recipe.center) == ("last", "resid_post", "norm", False)
    depth = recipe.size.n_layers
    published = 21 if truthful else 2
    assert recipe.last_layers == (published if depth == 32 else math.ceil(depth * published / 32))
    assert recipe.layers_of(depth) == list(range(depth))[-recipe.last_layers :]
    assert recipe.note_on_layers(depth) is None
    assert depth == 32 or any(f"This model has {depth}" in note for note in recipe.notes)
    (tmp_path / "copy.json").write_text(json.dumps(recipe.to_json()))
    assert Recipe.from_json(tmp_path / "copy.json") == recipe


@pytest.mark.parametrize(("n_layers", "expected"), [(1, 1), (3, 2), (6, 4), (32, 21), (64, 42)])
def test_another_depth_gets_the_same_share_of_layers(n_layers, expected):
    recipe = Recipe.load("llama-2-7b-chat", "truthfulness")
    assert recipe.layers_of(n_layers) == list(range(n_layers - expected, n_layers))
    note = recipe.note_on_layers(n_layers)
    assert (note is None) == (n_layers == 32)
    assert note is None or f"the last {expected} are edited" in note


def test_costs_add_up_by_hand():
    recipe = Recipe.load("llama-2-7b-chat", "truthfulness")
    found = estimate(recipe, recipe.size).table["gigabytes"]
    assert found["weights"] == pytest.approx(6.738415616 * 2)
    assert found["activations"] == pytest.approx(3 * 2000 * 21 * 4096 * 4 / 1e9)
    # A key and a value of 32 heads of 128 in 32 layers take half a megabyte a token, for prompts and for answers.
    assert found["key-value cache"] == pytest.approx(2 * 0.524288e6 * 8 * 768 / 1e9)
    assert found["logits"] == pytest.approx(8 * 768 * 32000 * 2 / 1e9)
    wider = estimate(recipe.changed(batch_size=16, dtype="float32"), recipe.size)
    assert wider.table["gigabytes"]["weights"] == pytest.approx(2 * found["weights"])
    assert wider.table["gigabytes"]["key-value cache"] == pytest.approx(4 * found["key-value cache"])
    assert wider.total("host") == estimate(recipe, recipe.size).total("host")


def test_questions_are_never_demonstrations(shared_data):
    recipe = Recipe.load("llama-2-7b-chat", "bias").changed(n_demonstrations=400, n_questions=150)
    path = shared_data / "bbq_Religion.jsonl"
    demonstrations = recipe.read_demonstrations(path, 0)
    questions = recipe.read_questions(path, 0, demonstrations)
    assert not {row.prompt for row in demonstrations} & {row.prompt for row in questions}
    assert len(questions) == 150
    assert {row.context_condition for row in questions} == {"disambig"}
    assert all(row.prompt.startswith("Q: ") and row.prompt.endswith("\nA:") for row in (*demonstrations, *questions))
    everything = recipe.changed(n_demonstrations=600).read_demonstrations(path, 0)
    with pytest.raises(InputError, match=r"Every question of .* is among the demonstrations"):
        recipe.read_questions(path, 0, everything)
    truth = Recipe.load("llama-2-7b-chat", "truthfulness").changed(n_demonstrations=20)
    read = truth.read_demonstrations(shared_data / "halueval_qa_500.json", 0)
    assert len(truth.read_questions(shared_data / "TruthfulQA.csv", 0, read)) == 817


def test_recipes_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no recipe for 'gpt2' and 'bias'"):
        Recipe.load("gpt2", "bias")
    good = Recipe.load("gemma-2b-it", "bias").to_json()
    for change, message in (
        ({"format": "other"}, "is no recipe"),
        ({"behaviour": "taste"}, "behaviour is one of"),
        ({"seeds": 1}, "seeds is not known"),
    ):
        (tmp_path / "recipe.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(FileFormatError, match=message):
            Recipe.from_json(tmp_path / "recipe.json")
    del good["token"]
    (tmp_path / "recipe.json").write_text(json.dumps(good))
    with pytest.raises(FileFormatError, match="token is missing"):
        Recipe.from_json(tmp_path / "recipe.json")


def test_data_is_fetched_once_joined_and_checked(tmp_path, recwarn):
    parts = {"a.jsonl": b'{"a": 1}\n', "b.jsonl": b'{"b": 2}'}
    for name, contents in parts.items():
        (tmp_path / name).write_bytes(contents)
    addresses = {(tmp_path / name).as_uri(): git_hash(contents) for name, contents in parts.items()}
    data = PublishedData("all.jsonl", addresses)
    path = data.fetch(tmp_path / "cache")
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    (tmp_path / "a.jsonl").unlink()
    assert data.fetch(tmp_path / "cache") == path  # no more asked for
    assert not recwarn.list
    (tmp_path / "a.jsonl").write_bytes(b"other\n")
    with pytest.warns(SeaLensWarning, match=r"a\.jsonl holds something else"):
        data.fetch(tmp_path / "another")


def test_an_address_that_does_not_answer_is_named_and_leaves_nothing(tmp_path):
    data = PublishedData("x.jsonl", {"http://127.0.0.1:9/x.jsonl": ""})
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/x\.jsonl could not be fetched: .* give its path"):
        data.fetch(tmp_path)
    assert not (tmp_path / "x.jsonl").exists()


def test_published_hashes_are_those_of_the_files_here(shared_data):
    for data, name in ((TRUTHFULQA, "TruthfulQA.csv"), (BBQ, "Age.jsonl"), (BBQ, "Religion.jsonl")):
        (expected,) = [found for address, found in data.files.items() if address.endswith(f"/{name}")]
        file = name if data is TRUTHFULQA else f"bbq_{name}"
        assert git_hash((shared_data / file).read_bytes()) == expected
    assert len(BBQ.files) == 11
    assert len(HALUEVAL.files) == 1


def test_a_fit_is_read_back_and_another_one_made_anew(llama, tmp_path, monkeypatch):
    recipe = Recipe.load("llama-2-7b-chat", "truthfulness").changed(prompt="plain", max_new_tokens=1)
    words = ["one", "two", "three", "four", "five", "six"]
    demonstrations = Demonstrations.from_lists(
        words, [f"{word} yes" for word in words], [f"{word} nay" for word in words]
    )
    questions = Questions.from_lists(["Q: sea?", "Q: sky?"], [["blue"], ["grey"]], [["red"], ["green"]])
    collected = []

    def collect(*given, **options):
        collected.append(1)
        return collect_activations(*given, **options)

    monkeypatch.setattr(run, "collect_activations", collect)

    def fitted(share):
        changed = recipe.changed(center=True, explained_variance=share)
        editor = run.run_recipe(changed, llama, demonstrations, questions, tmp_path, progress=False).editor
        assert not (tmp_path / "activations").exists()
        assert Editor.from_pretrained(tmp_path / "editor").fingerprint == editor.fingerprint
        return editor.fingerprint

    first = fitted(0.5)
    assert (fitted(0.5), len(collected)) == (first, 1)
    assert fitted(0.9) != first
    assert (fitted(0.5), len(collected)) == (first, 3)
