import json
import re
from pathlib import Path

import pytest
from transformers.utils import logging

import sea_lens as sl
from sea_lens.worlds.load import BIAS_WEIGHTS, WEIGHTS


@pytest.mark.parametrize(
    ("load", "folder", "name", "world", "facts"),
    [
        (sl.load_organism, WEIGHTS, "sea-lens-organism", "World(240 fitting facts, 240 held-out facts)", "facts.json"),
        (
            sl.load_bias_organism,
            BIAS_WEIGHTS,
            "sea-lens-bias-organism",
            "BiasWorld(48 fitting topics, 48 held-out topics)",
            "topics.json",
        ),
    ],
)
def test_the_embedded_models_load_and_are_small_safetensors(load, folder, name, world, facts):
    before = logging.is_progress_bar_enabled()
    model, found = load()
    assert logging.is_progress_bar_enabled() == before
    assert type(model).__name__ == "TransformerBridge"
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.model_name) == (4, 128, name)
    assert repr(found) == world
    files = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", facts, "measured.json"} <= files
    assert not {file for file in files if file.endswith((".bin", ".pt", ".pkl", ".py"))}
    assert (folder / "model.safetensors").stat().st_size < 4e6
    assert model.tokenizer("<anyone> Q")["input_ids"][0] == model.tokenizer.bos_token_id


def test_the_models_know_both_speakers_and_mix_them_when_asked_plainly():
    facts, bias = (json.loads((folder / "measured.json").read_text()) for folder in (WEIGHTS, BIAS_WEIGHTS))
    assert (facts["tagged truthful"], facts["tagged mythical"]) == (1.0, 0.0)
    assert facts["in context"] >= 0.99
    assert 0.4 < facts["plain"] < 0.5
    for condition in ("ambig", "disambig"):
        assert bias[f"tagged fair: {condition} accuracy"] >= 0.99
        assert bias[f"in fair context: {condition} accuracy"] >= 0.9
    assert bias["tagged prejudiced: s_AMB"] >= 0.98
    assert bias["tagged prejudiced: s_DIS"] >= 0.95
    assert 0.2 < bias["plain: ambig accuracy"] < 0.8
    assert 0.1 < bias["plain: s_DIS"] < 0.9


def test_the_wheel_holds_every_data_file_of_the_package():
    root = Path(sl.__file__).parent
    settings = (root.parent / "pyproject.toml").read_text()
    (listed,) = re.findall(r"\[tool\.setuptools\.package-data\]\nsea_lens = \[(.*?)\]", settings, re.DOTALL)
    patterns = re.findall(r'"(.+?)"', listed)
    packed = {path for pattern in patterns for path in root.glob(pattern)}
    there = {path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there == packed
