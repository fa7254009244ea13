"""A tiny model that vLLM's CPU build takes, editors of it, and what the bridge answers; servers on loopback that end."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, nullcontext
from functools import cache

import pytest
import torch
from conftest import byte_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

import sea_lens as sl
from sea_lens.editing.conditions import similarities
from sea_lens.editing.sparing import NotMassive

QUIETLY = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
START, ANSWER = 900, 300  # seconds, on a busy machine
LENGTH = 20
PROMPTS = ["Once upon a time there was a little", "The dog was very", "Lily and Ben went to the park because", "One"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random Llama with heads of 32: vLLM's attention on CPUs knows no smaller ones."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bridge(tiny_folder):
    return sl.load_model(str(tiny_folder), device="cpu")


@pytest.fixture(scope="session")
def prompts(bridge):
    """As ids, so that nobody's habit with beginning tokens matters."""
    return [bridge.tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS]


@pytest.fixture(scope="session")
def answers_of(bridge, prompts):
    """What the bridge answers greedily under an editor, one prompt at a time."""

    @torch.no_grad()
    def answer(editor=None):
        found = []
        with nullcontext() if editor is None else editor.attached(bridge):
            for ids in prompts:
                given = torch.tensor([ids])
                options = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 1}
                written = bridge.original_model.generate(given, attention_mask=torch.ones_like(given), **options)
                found.append(written[0, len(ids) :].tolist())
        return found

    return answer


@cache
def edit(width: int, seed: int = 0) -> sl.AffineEdit:
    """One that moves a token by about its own length."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, 3, generator=generator)).Q
    shift = torch.randn(width, generator=generator)
    return sl.AffineEdit.of_eigenvalues(basis, torch.tensor([1.0, -1.0, 2.0]), shift, restore_norm=True)


@pytest.fixture(scope="session")
def editors(bridge, prompts):
    """By name: at every token, at other sites, at positions, and those that must know the prompt."""
    everywhere = sl.Editor({layer: edit(64, layer) for layer in (1, 2, 3)})
    spared = everywhere.at_positions(NotMassive(True, (("blocks.2.hook_resid_post", 9.0),)))
    direction = torch.randn(64, generator=torch.Generator().manual_seed(5))
    states = [bridge.run_with_cache(torch.tensor([ids]))[1]["blocks.0.hook_resid_post"][0].mean(0) for ids in prompts]
    aligned = similarities(torch.stack(states), direction)
    condition = sl.WhenAligned(0, direction, threshold=float(aligned.median()) + 1e-3)  # which some prompts meet
    by_site = {
        site: sl.Editor({f"blocks.1.{site}": edit(width)})
        for site, width in (
            ("hook_resid_pre", 64),
            ("hook_attn_out", 64),
            ("hook_mlp_out", 64),
            ("attn.hook_z", 64),
            ("mlp.hook_post", 96),
        )
    }
    return {
        "every token": everywhere,
        **by_site,
        "from 1": everywhere.at_positions(1),
        "a slice": everywhere.at_positions(slice(2, 30, 3)),
        "a list": everywhere.at_positions([0, 3, 40]),
        "sparing": spared,
        "prompt": everywhere.at_positions("prompt"),
        "generated": everywhere.at_positions("generated"),
        "last of the prompt": everywhere.at_positions([-1]),
        "generated, sparing": spared.at_positions("generated"),
        "a condition": everywhere.when(condition),
        "a condition, generated": everywhere.at_positions("generated").when(condition),
    }


BY_PROMPT = ("prompt", "generated", "last of the prompt", "generated, sparing", "a condition", "a condition, generated")


@contextmanager
def server(model, editor=None, *options, expect_failure=None, log_folder=None):
    """`vllm serve` on loopback, ended with all its processes; its address, or its log where it must not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; the command itself asks for a distribution `vllm`, and the CPU build is `vllm-cpu`.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--max-model-len",
        "256",
        "--max-num-seqs",
        "8",
        *options,
    ]
    environment = os.environ | QUIETLY | ({} if editor is None else {"SEA_LENS_EDITOR": str(editor)})
    log = (log_folder or model.parent) / f"server-{port}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        until = time.monotonic() + START
        while expect_failure is None and not _answers(port):
            assert process.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() < until, f"no server after {START} s:\n{log.read_text()[-6000:]}"
            time.sleep(0.5)
        if expect_failure is not None:
            assert process.wait(START) != 0
            yield log.read_text()
        else:
            yield f"http://127.0.0.1:{port}/v1"
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sent)
                process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def ask(address, prompts, model, n=LENGTH):
    """All prompts at once, by the client of the `openai` package: the ids of what is answered to each."""
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", timeout=ANSWER, max_retries=0)
    options = {"ignore_eos": True, "return_token_ids": True}
    reply = client.completions.create(model=str(model), prompt=prompts, max_tokens=n, temperature=0, extra_body=options)
    return [choice.token_ids for choice in sorted(reply.choices, key=lambda choice: choice.index)]
