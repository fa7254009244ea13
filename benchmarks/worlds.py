"""What is measured on: activations like a model's, random Llamas of a chosen size, and texts. Nothing is downloaded."""

from __future__ import annotations

from importlib.resources import files

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sea_lens import Demonstration, Demonstrations, Editor, Question, Questions
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.card import EditorCard


def activations(n: int, d: int, seed: int = 0) -> list[Float[Tensor, "n d_model"]]:
    """Neutral, positive and negative activations in float32, with what makes real ones hard.

    Variances fall as 1 / rank, in mixed directions; the mean is about as long as the rest together and has a massive
    coordinate; two thirds of the variance is shared by the three sides, whose means differ a little.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, d + 1) ** -0.5
    scale = scale / scale.square().sum().sqrt()
    mirror = torch.linalg.qr(torch.randn(d, 64, generator=generator))[0]  # 64 reflections mix the axes at little cost
    mean = torch.randn(d, generator=generator) / d**0.5
    mean[d // 3] += 0.5
    shared = torch.randn(n, d, generator=generator) * scale
    sides = []
    for _ in range(3):
        rows = shared + 0.7 * torch.randn(n, d, generator=generator) * scale
        rows = rows - 2 * (rows @ mirror) @ mirror.T
        sides.append(10 * (rows + mean + 0.05 * torch.randn(d, generator=generator) * scale))
    return sides


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte. Texts are split into words first, for tokenizers keep up to 10,000 of these in memory."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: index for index, token in enumerate(["<bos>", "<eos>", *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<bos>", "<eos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        name_or_path="bytes",
        add_bos_token=True,
    )


def hf_llama(d_model: int, n_layers: int, d_vocab: int = 258) -> torch.nn.Module:
    """A random Llama. Its vocabulary is small, so that no unembedding hides what an edit costs."""
    config = LlamaConfig(
        vocab_size=d_vocab,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_size=d_model,
        intermediate_size=d_model * 11 // 4,
        num_hidden_layers=n_layers,
        num_attention_heads=max(4, d_model // 64),
        num_key_value_heads=max(4, d_model // 64),
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config.architectures = [type(model).__name__]
    built: torch.nn.Module = model
    return built


def llama(d_model: int, n_layers: int, d_vocab: int = 258) -> TransformerBridge:
    """The same, in a bridge."""
    name = f"random-llama-{d_model}x{n_layers}"
    hf_model = hf_llama(d_model, n_layers, d_vocab)
    return TransformerBridge.boot_transformers(name, hf_model=hf_model, tokenizer=byte_tokenizer(), device="cpu")


SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_theta": 100000.0,
}
"""The shape of SmolLM2-135M."""

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
    "Hugging Face<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""That of SmolLM2-Instruct."""


def smollm2_tokenizer(d_vocab: int = 49152) -> PreTrainedTokenizerFast:
    """As many tokens as SmolLM2 has: pieces of words from the texts that the package ships, and names for the rest.

    The chat template takes about as many tokens as with SmolLM2's own tokenizer.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([SHOTS, _sample(), CHAT_TEMPLATE] * 2, trainer)
    raw.add_tokens([f" w{number}" for number in range(d_vocab - raw.get_vocab_size())])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        name_or_path="smollm2-shape",
        add_bos_token=True,  # or TransformerLens asks the hub for another tokenizer
        chat_template=CHAT_TEMPLATE,
    )


def _sample() -> str:
    return (files("sea_lens.data") / "neutral.txt").read_text(encoding="utf-8")


def hf_smollm2(seed: int = 0, n_layers: int = 30) -> torch.nn.Module:
    """A random Llama of the shape of SmolLM2-135M: 30 layers, width 576, 49,152 tokens; or of fewer layers."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**{**SMOLLM2, "num_hidden_layers": n_layers}, bos_token_id=1, eos_token_id=2, pad_token_id=2)  # type: ignore[arg-type]
    ).eval()
    model.config.architectures = [type(model).__name__]
    built: torch.nn.Module = model
    return built


def smollm2() -> TransformerBridge:
    """The same, in a bridge."""
    return TransformerBridge.boot_transformers(
        "smollm2-shape", hf_model=hf_smollm2(), tokenizer=smollm2_tokenizer(), device="cpu"
    )


def random_editor(d_model: int, n_layers: int, rank: int, seed: int = 0) -> Editor:
    """Edits of `rank` promoted and `rank` suppressed directions at every layer."""
    generator = torch.Generator().manual_seed(seed)
    edits = {}
    for layer in range(n_layers):
        basis = torch.linalg.qr(torch.randn(d_model, 2 * rank, generator=generator))[0]
        sines = torch.rand(rank, generator=generator).sort(descending=True).values.clamp_min(0.05)
        edits[layer] = AffineEdit.of_eigenvalues(basis, torch.cat([sines, -sines.flip(0)]), restore_norm=True)
    return Editor(edits, EditorCard("random", {}))


SHOTS = " ".join(
    f"Q: What does traveller {number} carry? A: A box of {what}."
    for number, what in enumerate(("salt", "maps", "old coins", "green glass", "rope", "letters"), start=1)
)
"""Six questions with answers, as benchmarks put before each question: some 290 tokens."""


def demonstrations(n: int, prefix: str = SHOTS) -> Demonstrations:
    """Up to 10,000 short questions with three answers each, after a shared beginning; all of one length."""
    numbers = [f"{index // 100:02d}.{index % 100:02d}" for index in range(n)]
    rows = [
        Demonstration(
            prompt=f"{prefix} Q: Who keeps lighthouse {number}? A:",
            positive=f"Keeper {number}.",
            negative=f"No man {number}.",
            neutral=f"It is {number}.",
        )
        for number in numbers
    ]
    return Demonstrations(tuple(rows), "benchmark")


def questions(n: int, answers: int = 8, prefix: str = SHOTS) -> Questions:
    """Questions with answers, half of them true."""
    half = answers // 2
    rows = [
        Question(
            prompt=f"{prefix} Q: Which road leads to town {index}? A:",
            right=tuple(f"Road {index + answer} by the mill." for answer in range(half)),
            wrong=tuple(f"No road but {index + answer} leads there." for answer in range(answers - half)),
        )
        for index in range(n)
    ]
    return Questions(tuple(rows), "benchmark")
