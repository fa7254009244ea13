"""What is read off a bridge."""

import os

import pytest
from conftest import build_bridge

from sea_lens.arguments import follows
from sea_lens.models.bridge import Model, ModelInfo


def test_a_bridge_is_our_model(bridge):
    assert follows(bridge, Model)


@pytest.mark.parametrize(("architecture", "weights"), [("gpt2", "layernorm folded"), ("llama", "raw")])
def test_facts_before_and_after_compatibility_mode(architecture, weights):
    model = build_bridge(architecture)
    assert ModelInfo.of(model) == ModelInfo(f"tiny-{architecture}", 3, 32, "raw", 4)
    model.enable_compatibility_mode(disable_warnings=True)
    assert ModelInfo.of(model).weights == weights


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("gpt2", "gpt2"),
        ("meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b"),
        ("/models/mine", "mine"),
        ("./mine/", "mine"),
        ("runs/one/mine", "mine"),
        ("~/mine", "mine"),
    ],
)
def test_a_name_does_not_depend_on_the_working_directory(llama, monkeypatch, tmp_path, given, name):
    monkeypatch.chdir(tmp_path)
    os.makedirs("gpt2")
    os.makedirs("meta-llama/Llama-2-7b")
    monkeypatch.setattr(llama.cfg, "model_name", given)
    assert ModelInfo.of(llama).name == name
