"""Memory of evaluations grows with tokens x width and not with tokens x vocabulary: every tensor is looked at."""

import weakref
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks import vocabulary, worlds

D_VOCAB, AT_ONCE, IN_CACHE = 258, 90, 16
"""Of the model; positions whose logits, and whose float64 distributions, may be in memory together."""


class Logits(TorchDispatchMode):
    """What is in memory with an entry for each token of the vocabulary, in values, the weights left out."""

    def __init__(self, model):
        super().__init__()
        self.live, self.most, self.largest, self.made = {}, 0, 0, 0
        self.weights = {each.untyped_storage()._cdata for each in model.original_model.state_dict().values()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == D_VOCAB:
                self.see(tensor, tensor.untyped_storage())
        return made

    def see(self, tensor, storage):
        key = storage._cdata
        if tensor.is_floating_point() and key not in self.weights and key not in self.live:
            self.live[key] = tensor.nbytes / 4
            weakref.finalize(storage, self.live.pop, key, None)
            self.made += tensor.numel() * (tensor.dtype == torch.float32)
            self.largest = max(self.largest, tensor.numel())
            self.most = max(self.most, sum(self.live.values()))


@cache
def evaluations():
    model = worlds.llama(32, vocabulary.N_LAYERS)
    assert model.cfg.d_vocab == D_VOCAB
    return model, vocabulary.evaluations(model, worlds.random_editor(32, vocabulary.N_LAYERS, 2))


@pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
@pytest.mark.parametrize("name", evaluations()[1])
def test_no_evaluation_holds_logits_of_all_its_tokens(name, monkeypatch):
    model, runs = evaluations()
    monkeypatch.setattr("sea_lens.models.distributions.LOGITS_AT_ONCE", AT_ONCE * D_VOCAB)
    monkeypatch.setattr("sea_lens.models.distributions.VALUES_IN_CACHE", IN_CACHE * D_VOCAB)
    with Logits(model) as logits:
        runs[name](2)
    assert logits.largest <= AT_ONCE * D_VOCAB
    # Both models' logits at some positions, and their distributions, in float64, with what is made of them.
    assert logits.most <= (2 * AT_ONCE + 2 * 6 * IN_CACHE) * D_VOCAB
    if name not in ("collect_activations", "generate_answers"):  # which read the last tokens of their rows, if any
        assert logits.made > AT_ONCE * D_VOCAB
