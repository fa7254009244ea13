"""`python -m benchmarks.serving MODEL`: tokens per second of a vLLM engine, edited against unedited, in turns."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch

import sea_lens as sl
from sea_lens import serving


def main() -> None:
    """Measures, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder, or a name that sea_lens loads (smollm2)")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import vllm

    folder = given.model
    if not os.path.isdir(folder):
        config = sl.load_model(folder, device="cpu").original_model.config
        folder = str(config._name_or_path)
    engine = vllm.LLM(folder, dtype="float32", enforce_eager=True, max_model_len=512, enable_prefix_caching=False)
    config = engine.llm_engine.model_config.hf_text_config
    width, depth = config.hidden_size, config.num_hidden_layers
    generator = torch.Generator().manual_seed(0)

    def rank_of(rank: int) -> sl.AffineEdit:
        basis = torch.linalg.qr(torch.randn(width, rank, generator=generator)).Q
        shift = torch.randn(width, generator=generator) / width
        return sl.AffineEdit.of_eigenvalues(basis, torch.full((rank,), -0.01), shift, restore_norm=True)

    middle = range(depth // 3, 2 * depth // 3)
    editors: dict[str, sl.Editor | None] = {
        "unedited": None,
        "a shift at one layer": sl.Editor({depth // 2: sl.AffineEdit.of_shift(torch.ones(width) / width)}),
        "rank 64 at one layer": sl.Editor({depth // 2: rank_of(64)}),
        f"rank 64 at {len(middle)} layers": sl.Editor({layer: rank_of(64) for layer in middle}),
    }
    editors[f"the same, generated tokens of {len(middle)} layers"] = editors[
        f"rank 64 at {len(middle)} layers"
    ].at_positions("generated")  # type: ignore[union-attr]
    prompts = [{"prompt_token_ids": [7 + 11 * row + place for place in range(16)]} for row in range(given.requests)]
    sampling = vllm.SamplingParams(temperature=0, max_tokens=given.new_tokens, ignore_eos=True)

    def run() -> float:
        began = time.perf_counter()
        engine.generate(prompts, sampling, use_tqdm=False)
        return given.requests * given.new_tokens / (time.perf_counter() - began)

    speeds: dict[str, list[float]] = {name: [] for name in editors}
    run()
    for _ in range(given.repeats):
        for name, editor in editors.items():
            with nullcontext() if editor is None else serving.attach(engine, editor):
                speeds[name].append(run())
    _print(speeds, lambda name: [a / b for a, b in zip(speeds[name], speeds["unedited"], strict=True)])
    print(
        f"\n{given.requests} requests of 16 + {given.new_tokens} tokens, {given.repeats} turns, float32, eager, "
        f"{torch.get_num_threads()} threads, vllm {vllm.__version__}, {folder}"
    )


def _print(speeds: dict[str, list[float]], ratios: Callable[[str], list[float]]) -> None:
    print("| editor | tokens per second | of the unedited speed (least to most over turns) |\n| --- | --- | --- |")
    for name, found in speeds.items():
        shares = sorted(ratios(name))
        print(f"| {name} | {median(found):.0f} | {median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f}) |")


if __name__ == "__main__":
    main()
