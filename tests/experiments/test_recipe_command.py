import json

import pandas as pd
import pytest
import torch
from conftest import byte_tokenizer
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig

from sea_lens import Editor
from sea_lens.cli.app import console

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 258,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.1,
    "max_position_embeddings": 1024,
}
SMALL = ["--n", 8, "--n-questions", 4, "--max-new-tokens", 2, "--dtype", "float32", "--prompt", "plain"]


def saved(config, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("name", "behaviour", "config", "files", "layers"),
    [
        ("llama-2-7b-chat", "truthfulness", LlamaConfig(**SIZES), ("halueval_qa_500.json", "TruthfulQA.csv"), [1, 2]),
        (
            "gemma-2b-it",
            "bias",
            GemmaConfig(**SIZES, head_dim=8),
            ("bbq_disambig_4000.jsonl", "bbq_Religion.jsonl"),
            [2],
        ),
    ],
    ids=["llama truthfulness", "gemma bias"],
)
def test_a_recipe_runs_and_goes_on(sea_lens, some_data, tmp_path, name, behaviour, config, files, layers):
    folder = saved(config, tmp_path / "model")
    data = ["--demonstrations", some_data(files[0]), "--questions", some_data(files[1])]
    command = ["recipe", name, behaviour, *data, "--model", folder, *SMALL, "--out", tmp_path / "o"]
    code, out, err = sea_lens(*command)
    assert code == 0, err
    assert "note: This model has 3 layers and the recipe's has" in out
    editor = Editor.from_pretrained(tmp_path / "o" / "editor")
    assert editor.layers == layers
    assert editor.card.n_demonstrations == 8
    facts = json.loads((tmp_path / "o" / "evaluation" / "evaluation.json").read_text())
    assert facts["editor"]["name"] == str(tmp_path / "o" / "editor")
    assert facts["editor"]["fingerprint"] == editor.fingerprint
    assert facts["data"]["rows"] == 4
    assert facts["data"]["sha256"] is not None
    metrics = pd.read_csv(tmp_path / "o" / "evaluation" / "metrics.csv").set_index("metric")
    assert metrics.index[0] == ("MC1" if behaviour == "truthfulness" else "accuracy")
    recipe = json.loads((tmp_path / "o" / "recipe.json").read_text())
    assert (recipe["n_demonstrations"], recipe["prompt"], recipe["dtype"]) == (8, "plain", "float32")

    assert not (tmp_path / "o" / "activations").exists()

    # Again: answers and editor are there, and the same comes out.
    (kept,) = (tmp_path / "o").glob("answers-of-*-2-tokens.jsonl")
    there = [kept, *(tmp_path / "o" / "editor").iterdir()]
    stamps = [path.stat().st_mtime_ns for path in there]
    (tmp_path / "o" / "activations").mkdir()  # as a run leaves it that is killed just after the fit
    assert sea_lens(*command)[0] == 0
    assert not (tmp_path / "o" / "activations").exists()
    assert stamps == [path.stat().st_mtime_ns for path in there]
    again = pd.read_csv(tmp_path / "o" / "evaluation" / "metrics.csv").set_index("metric")
    pd.testing.assert_frame_equal(again, metrics)


def test_a_dry_run_says_what_is_needed_and_loads_nothing(sea_lens, tmp_path, monkeypatch):
    monkeypatch.setenv("SEA_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "_width", 80)
    monkeypatch.chdir(tmp_path)
    code, out, err = sea_lens("recipe", "llama-2-70b-chat", "truthfulness", "--dry-run")
    assert (code, err) == (0, "")
    for part in (
        "meta-llama/Llama-2-70b-chat-hf, revision not pinned, float16",
        "data/qa_data.json",
        "TruthfulQA.csv",
        "layers 27 to 79 of 0 to 79",
        "137.95",
        "68,976,648,192 parameters x 2 bytes",
        "GB device",
    ):
        assert part in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_on_a_folder_counts_that_models_parameters(sea_lens, tmp_path):
    config = LlamaConfig(**SIZES)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)  # no weights at all
    code, out, err = sea_lens("recipe", "gemma-7b-it", "bias", "--dry-run", "--model", tmp_path, "--batch-size", 2)
    assert code == 0, err
    expected = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert f"{expected:,} parameters" in out
    assert "in batches of 2" in out
    assert "note: This model has 3 layers and the recipe's has 28" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["gpt2", "bias"], "There is no recipe for 'gpt2' and 'bias'"),
        (["gemma-2b-it"], "behaviours are truthfulness, bias"),
        (["nofile.json"], "nofile.json could not be read as a recipe"),
        (["nofile.json", "bias"], "leave out 'bias'"),
        (["gemma-2b-it", "bias", "--demonstrations", "nofile.jsonl"], "nofile.jsonl could not be read"),
        (["gemma-2b-it", "bias", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_mistakes_are_one_line(sea_lens, tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    code, _, err = sea_lens("recipe", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert part in err
    assert err.count("\n") == 1
