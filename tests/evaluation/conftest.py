"""Editors by hand and a count of passes, shared by the tests of evaluations."""

from contextlib import contextmanager

import pytest
import torch
from conftest import low_rank

from sea_lens import Editor, EditorCard
from sea_lens.methods.sea.published import PublishedEdit
from sea_lens.models.bridge import ModelInfo


def basis_of(model, rank, seed):
    drawn = torch.randn(model.cfg.d_model, rank, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn)[0]


@pytest.fixture(scope="session")
def editor_of():
    """Makes an editor of every layer that moves activations far, with their norms restored."""

    def make(model, seed=0):
        gains = torch.tensor([-1.0, -0.9, 1.5, 2.0])
        edits = {layer: low_rank(basis_of(model, 4, 100 * seed + layer), gains) for layer in range(model.cfg.n_layers)}
        return Editor(edits, EditorCard("by hand", {"seed": seed}, model=ModelInfo.of(model)))

    return make


@pytest.fixture(scope="session")
def published_of():
    """Makes an editor by the published rule, which mixes the tokens of a pass."""

    def make(model):
        sides = basis_of(model, model.cfg.d_model - 4, 1), basis_of(model, 4, 2)
        return Editor({1: PublishedEdit(*sides)}, EditorCard("sea", model=ModelInfo.of(model)))

    return make


@pytest.fixture(scope="session")
def counted():
    """Counts forward passes of a model inside a `with` block."""

    @contextmanager
    def count(model):
        passes = []
        counter = model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
        try:
            yield passes
        finally:
            counter.remove()

    return count
