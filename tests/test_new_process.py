"""What holds in a process that has imported nothing yet: one is started for all of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_editor
from transformers import AutoModelForCausalLM

import sea_lens as sl
from sea_lens.cache import digest

HEAVY = {"torch", "transformers", "pandas", "matplotlib", "sklearn"}
SCRIPT = """
import json, sys, sea_lens as sl
found = {"after the import": sorted(sys.modules)}
import torch
from transformers import AutoModelForCausalLM
from sea_lens.cache import digest
model, ids = AutoModelForCausalLM.from_pretrained("model"), torch.arange(2, 9)[None]
with torch.no_grad():
    with sl.Editor.from_pretrained("editor").attached(model):
        edited = model(ids).logits
    found["edited"], found["unedited"] = edited.tolist(), model(ids).logits.tolist()
found["after an edit"] = sorted(sys.modules)
from sea_lens.editing import registry
found["registered"] = list(registry._BY_NAME)
found["digest"] = digest({"a": torch.ones(3)}, 1.5, len, {"b", "c", "d"})
json.dump(found, open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def plain(llama):
    """The model that a bridge was made around, before it was."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(llama.original_model.config).eval()


@pytest.fixture(scope="module")
def found(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    plain.save_pretrained(folder / "model")
    make_editor().save_pretrained(folder / "editor")
    root = str(Path(sl.__file__).parents[1])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{SCRIPT}"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_importing_the_package_loads_nothing_heavy(found):
    assert "sea_lens" in found["after the import"]
    assert HEAVY & set(found["after the import"]) == set()


@torch.no_grad()
def test_no_transformer_lens_is_needed_to_edit_a_plain_model(found, plain):
    assert "transformer_lens" not in found["after an edit"]
    ids = torch.arange(2, 9)[None]
    with make_editor().attached(plain):
        edited = plain(ids).logits
    torch.testing.assert_close(torch.tensor(found["edited"]), edited)
    torch.testing.assert_close(torch.tensor(found["unedited"]), plain(ids).logits)
    assert (edited - plain(ids).logits).abs().max() > 0.1


def test_every_kind_there_is_can_be_read_without_another_import(found):
    """A conditional editor once could not."""
    ours = "\n".join(path.read_text(encoding="utf-8") for path in Path(sl.__file__).parent.rglob("*.py"))
    registered = set(re.findall(r'^@register_(?:edit|value)\("([^"]+)"\)', ours, re.MULTILINE))
    assert len(registered) > 20
    assert registered <= set(found["registered"])


def test_digests_are_the_same_in_every_process(found):
    assert found["digest"] == digest({"a": torch.ones(3)}, 1.5, len, {"b", "c", "d"})
