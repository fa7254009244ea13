"""Any one value changed anywhere makes another model; where a model lies does not."""

import copy
import time

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import build_bridge
from torch.testing._internal.two_tensor import TwoTensor

from sea_lens.errors import ModelMismatchError
from sea_lens.models.bridge import _checksum, weights_digest


@pytest.fixture(scope="module")
def model():
    return build_bridge("llama")


def tensors_of(model):
    hf_model = model.original_model
    return {**dict(hf_model.named_parameters()), **dict(hf_model.named_buffers())}


def test_any_one_value_of_any_weight_counts(model):
    before = weights_digest(model)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors_of(model).items():
        flat = tensor.data.view(-1)
        for place in {0, len(flat) - 1, int(torch.randint(len(flat), (), generator=generator))}:
            kept = flat[place].clone()
            bits = flat.view(torch.int32)
            for bit in (0, 31):  # the least and the sign
                bits[place] ^= 1 << bit if bit < 31 else -(2**31)
                assert weights_digest(model) != before, (name, place, bit)
                flat[place] = kept
    assert weights_digest(model) == before


def test_settings_and_tokenizer_count_and_the_same_model_comes_to_the_same(model):
    before = weights_digest(model)
    twin = build_bridge("llama")
    assert weights_digest(twin) == before
    config, tokenizer = twin.original_model.config, copy.deepcopy(twin.tokenizer)
    config._name_or_path = "/elsewhere/llama"
    twin.tokenizer(["ab", "c"], padding=True, truncation=True, max_length=2)
    twin.generate(torch.tensor([[5, 6]]), max_new_tokens=2, verbose=False)
    assert weights_digest(twin) == before
    found = {before}
    for change in (
        lambda: setattr(config, "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        lambda: setattr(config, "sliding_window", 4),
        lambda: setattr(twin.cfg, "default_prepend_bos", not twin.cfg.default_prepend_bos),
        lambda: setattr(twin.original_model.generation_config, "eos_token_id", [1, 37]),
        lambda: setattr(tokenizer, "eos_token", "a") or setattr(twin, "tokenizer", tokenizer),
        lambda: tokenizer.add_tokens(["Denver"]),
        lambda: setattr(twin, "tokenizer", None),
    ):
        change()
        assert weights_digest(twin) not in found
        found.add(weights_digest(twin))
    half = build_bridge("llama", torch.bfloat16)
    assert weights_digest(half) not in found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.bool])
def test_a_checksum_is_of_values_in_their_places(dtype):
    base = (torch.arange(2**18 + 3) % 251).to(torch.int16).to(dtype)
    flipped = base.clone()
    flipped[[0, 2**17 + 5]] = flipped[[2**17 + 5, 0]]  # two values change places
    negated = base.clone()
    negated[1::2] = ~negated[1::2] if dtype == torch.bool else -negated[1::2]
    others = [flipped, negated, base.roll(1), base[:-1], base.reshape(1, -1)]
    found = [_checksum("x", other) for other in [base, *others]]
    assert len(set(found)) == len(found)
    assert _checksum("x", base[1:]) == _checksum("x", base[1:].clone())
    square = base[: 2**18].reshape(2**9, 2**9)
    assert _checksum("x", square.T) == _checksum("x", square.T.contiguous())


def test_a_quantized_weight_is_told_by_its_parts():
    one = TwoTensor(torch.zeros(3), torch.ones(3))
    assert _checksum("x", one) == _checksum("x", TwoTensor(torch.zeros(3), torch.ones(3)))
    assert _checksum("x", one) != _checksum("x", TwoTensor(torch.zeros(3), torch.tensor([1.0, 1.0, 1.5])))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded_weights_are_read_where_they_wait(model, where, tmp_path):
    offloaded = build_bridge("llama")
    wait = disk_offload if where == "disk" else cpu_offload
    wait(offloaded.original_model, *([tmp_path] if where == "disk" else []), execution_device=torch.device("cpu"))
    assert any(tensor.is_meta for tensor in offloaded.original_model.parameters())
    assert weights_digest(offloaded) == weights_digest(model)
    assert any(tensor.is_meta for tensor in offloaded.original_model.parameters())


def test_weights_that_are_nowhere_are_refused():
    missing = build_bridge("llama")
    missing.original_model.to("meta")
    with pytest.raises(ModelMismatchError, match=r"on the meta device.*offload them with accelerate"):
        weights_digest(missing)


def test_a_dynamic_rope_has_one_digest_before_and_after_a_long_text():
    changes = {
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        "max_position_embeddings": 16,
    }
    dynamic = build_bridge("llama", **changes)
    before = weights_digest(dynamic)
    frequencies = dynamic.original_model.model.rotary_emb._original_component.inv_freq.clone()
    dynamic(torch.arange(40)[None] + 2)
    assert not torch.equal(frequencies, dynamic.original_model.model.rotary_emb._original_component.inv_freq)
    assert weights_digest(dynamic) == before


def test_it_takes_less_than_a_second_per_gigabyte():
    weight = torch.zeros(2**26)  # a quarter of one
    taken = []
    for _ in range(3):
        started = time.process_time()
        _checksum("x", weight)
        taken.append(time.process_time() - started)
    assert min(taken) < 1 / 4
