import doctest
from importlib import import_module

import pytest
import torch

from sea_lens.analysis.effects import EFFECTS
from sea_lens.worlds.demo import collect


@pytest.mark.parametrize("name", ["effects", "layers", "massive", "probes", "subspaces", "tokens"])
def test_examples_run(organism, world_editor, name, monkeypatch):
    model, world = organism
    given = {"model": model, "editor": world_editor, "questions": world.questions(world.held_out[::6])}
    module = import_module(f"sea_lens.analysis.{name}")
    known = dict(EFFECTS)
    found = doctest.testmod(module, extraglobs={**given, "activations": collect(*organism), "torch": torch})
    for added in set(EFFECTS) - set(known):
        EFFECTS.pop(added)
    assert found.failed == 0
    assert found.attempted > 0
