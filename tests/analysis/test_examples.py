import doctest
from importlib import import_module

import pytest

import sea_lens as sl
from sea_lens.analysis.effects import EFFECTS


@pytest.mark.parametrize(
    "name", ["effects", "features", "layers", "massive", "probes", "subspaces", "token_html", "token_view", "tokens"]
)
@pytest.mark.usefixtures("without_type_checks")
def test_examples_run(organism, world_editor, world_activations, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    model, world = organism
    given = {"sl": sl, "model": model, "editor": world_editor, "questions": world.questions(world.held_out[::12])}
    module = import_module(f"sea_lens.analysis.{name}")
    known = set(EFFECTS)
    found = doctest.testmod(module, extraglobs={**given, "activations": world_activations})
    for added in set(EFFECTS) - known:
        EFFECTS.pop(added)
    assert found.failed == 0
    assert found.attempted > 0
