"""`python -m benchmarks gpu`: the jobs that users wait for, on one GPU in bfloat16, in absolute times; what an edit adds.

Two random Llamas: of the shape of SmolLM2-135M and of Llama-2-7B. Before them, the embedded model: what it computes on a GPU
against the same on the CPU, in float32.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from benchmarks import published, training_loops, worlds
from benchmarks.rows.generating import NEW, PROMPTS, _chats, _lively
from benchmarks.texts import chat_demonstrations, truthfulqa
from sea_lens import (
    SEA,
    Activations,
    Editor,
    MeanDifference,
    ablate_layers,
    collect_activations,
    evaluate_truthfulqa,
    measure_damage,
)
from sea_lens.editing.sparing import NotMassive
from sea_lens.models.activations import ROLES
from sea_lens.models.generate import greedy_answers
from sea_lens.models.log_probs import score_answers
from sea_lens.models.tokens import PaddedTokens, all_token_ids, join
from sea_lens.models.unwrapped import forward
from sea_lens.worlds.load import load_organism

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
"""The shape of Llama-2-7B."""
LARGE = 256
"""Rows of tokens per pass. The default of 32 leaves a GPU idle: its passes take as long as starting their kernels does."""
TINY = {**worlds.SMOLLM2, "num_hidden_layers": 2, "hidden_size": 72, "intermediate_size": 96, "vocab_size": 4200}
"""To try this file on a CPU."""


@dataclass(frozen=True)
class Measured:
    """One line.

    Attributes:
        model: Its shape.
        what: What was run.
        seconds: The median, of the whole job or of a pass.
        note: What it is to be read beside.
    """

    model: str
    what: str
    seconds: float
    note: str = ""


def run(output: Path, device: str = "cuda", tiny: bool = False) -> None:
    """Runs everything, and keeps each line at once: what fails is printed, and the rest goes on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []

    def keep(lined: Iterator[Measured]) -> None:
        try:
            for line in lined:
                lines.append(vars(line))
                print(f"{line.model:>10}  {line.what:<72} {line.seconds:10.5f} s  {line.note}", flush=True)
                (output / "gpu.json").write_text(json.dumps({"device": name, "lines": lines}, indent=1) + "\n")
        except Exception:  # the machine is lent for minutes: the other jobs are still worth their time
            traceback.print_exc()

    keep(_same_as_cpu(device))
    shapes: Mapping[str, Mapping[str, object]] = (
        {"tiny": TINY} if tiny else {"smollm2": worlds.SMOLLM2, "llama-7b": LLAMA_7B}
    )
    for title, shape in shapes.items():
        plain = _plain(shape, device)
        tokenizer = worlds.smollm2_tokenizer(int(str(shape["vocab_size"])))
        model = TransformerBridge.boot_transformers(
            title, hf_model=plain, tokenizer=tokenizer, device=device, dtype=torch.bfloat16
        )
        width, layers = int(str(shape["hidden_size"])), int(str(shape["num_hidden_layers"]))
        editor = worlds.random_editor(width, layers, 16)
        for job in (_passes, _answers, _collection, _scoring, _ablation):
            keep(job(title, model, plain, editor))
            if device == "cuda":
                torch.cuda.empty_cache()
        del model, plain
    keep(_fits(device, tiny))


def _plain(shape: Mapping[str, object], device: str) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=2)  # type: ignore[arg-type]
    with torch.device(device):
        made: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    made.config.architectures = [type(made).__name__]
    return _lively(made)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _time(job: Callable[[], object], repeats: int = 1, warm: int = 1) -> float:
    for _ in range(warm):
        job()
    times = []
    for _ in range(repeats):
        _wait()
        started = time.perf_counter()
        job()
        _wait()
        times.append(time.perf_counter() - started)
    return median(times)


@contextmanager
def _peak(found: list[float]) -> Iterator[None]:
    """Peak memory of a block beyond what was there, in MB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield
    found.append((torch.cuda.max_memory_allocated() - before) / 1e6 if torch.cuda.is_available() else float("nan"))


def _same_as_cpu(device: str) -> Iterator[Measured]:
    """The embedded model on both devices."""
    sides: dict[str, dict[str, Tensor]] = {}
    answers: dict[str, list[str]] = {}
    for where in ("cpu", device):
        started = time.perf_counter()
        model, world = load_organism(where)
        demonstrations = world.demonstrations().with_neutral_answers(model, progress=False)
        questions = world.questions(world.held_out[:40])
        activations = collect_activations(model, demonstrations, progress=False)
        editor = SEA(0.9).fit(activations, device=where, progress=False)
        shifted = MeanDifference().fit(activations)
        damage = measure_damage(model, [row.prompt for row in questions], editor)
        ablation = ablate_layers(model, questions, editor, modes=["only"], control=0, progress=False)
        evaluation = evaluate_truthfulqa(model, questions, shifted, control=1, progress=False)
        with editor.attached(model):
            answers[where] = greedy_answers(model, [row.prompt for row in questions], 4, progress=False)
        sides[where] = {
            "activations": torch.cat([activations[role][layer] for role in ROLES for layer in activations.layers]),
            "edit": torch.stack([editor[layer](activations["negative"][layer]) for layer in editor.layers]),
            "log-probabilities": score_answers(model, questions, editor, progress=False).log_probabilities.nan_to_num(),
            "damage (kl)": torch.tensor([damage.kl]),
            "ablation": torch.tensor(ablation.per_question.to_numpy()),
            "truthfulqa": torch.tensor(evaluation.table.select_dtypes("number").to_numpy(float)).nan_to_num(),
        }
        yield Measured("organism", f"everything, {where}", time.perf_counter() - started)
    for what, value in sides["cpu"].items():
        far = float((value - sides[device][what]).abs().max() / value.abs().max())
        yield Measured("organism", f"{what}: GPU from CPU", math.nan, f"{far:.1e} of the largest apart")
    same = sum(one == other for one, other in zip(answers["cpu"], answers[device], strict=True))
    yield Measured("organism", "greedy edited answers", math.nan, f"{same} of {len(answers['cpu'])} equal")


def _passes(title: str, model: TransformerBridge, plain: nn.Module, editor: Editor) -> Iterator[Measured]:
    sparing = replace(editor, where=NotMassive(False, tuple((site.hook_name, 1e4) for site in editor.sites)))
    vocabulary, width = model.cfg.d_vocab, model.cfg.d_model
    for batch, length in ((1, 1), (4, 64), (8, 256), (16, 1024)) if width > 72 else ((1, 1), (4, 64)):
        ids = torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
        ids = ids.to(model.cfg.device)
        repeats = 30 if batch < 16 else 8

        def bridge(ids: Tensor = ids) -> None:
            with torch.no_grad():
                model(ids)

        def idle(ids: Tensor = ids) -> None:
            with torch.no_grad():
                forward(model, ids)

        for way, job in (("bridge", bridge), ("without idle wrappers", idle)):
            times = []
            for setup in (nullcontext(), editor.attached(model), sparing.attached(model), nullcontext()):
                with setup:
                    times.append(_time(job, repeats, 3))
            unedited = min(times[0], times[3])
            shares = f"edited x{times[1] / unedited:.3f}, sparing massive tokens x{times[2] / unedited:.3f}"
            yield Measured(title, f"forward ({batch}, {length}), {way}, unedited", unedited, shares)


def _answers(title: str, model: TransformerBridge, plain: nn.Module, editor: Editor) -> Iterator[Measured]:
    prompts = _chats(model.tokenizer)
    tokens = PaddedTokens.of(model, all_token_ids(model, prompts), side="left")
    ids, mask = tokens.ids.to(model.cfg.device), tokens.mask.long().to(model.cfg.device)
    end = model.tokenizer.eos_token_id
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=[end], pad_token_id=end)
    options = {"do_sample": False, "stop_at_eos": True, "eos_token_id": [end], "verbose": False}

    def ours() -> list[str]:
        return greedy_answers(model, prompts, NEW, stop=(), batch_size=PROMPTS, progress=False)

    def lens() -> None:
        model.generate(ids, NEW, attention_mask=mask, return_type="tokens", padding_side="left", **options)

    what = f"answers, {PROMPTS} prompts x {NEW} tokens"
    mine = _time(ours, 3)
    yield Measured(title, f"{what}, ours", mine)
    with editor.attached(model):
        yield Measured(title, f"{what}, ours, edited", _time(ours, 3))
    with torch.no_grad():
        theirs = _time(lambda: plain.generate(ids, attention_mask=mask, generation_config=config), 3)  # type: ignore[operator]
        yield Measured(title, f"{what}, Hugging Face generate", theirs, f"ours x{theirs / mine:.2f}")
        theirs = _time(lens, 1)
        yield Measured(title, f"{what}, TransformerLens generate", theirs, f"ours x{theirs / mine:.2f}")


def _collection(title: str, model: TransformerBridge, plain: nn.Module, editor: Editor) -> Iterator[Measured]:
    n = 200
    demonstrations = chat_demonstrations(model.tokenizer, n)
    for batch_size in (32, LARGE):
        found: list[float] = []
        job = partial(collect_activations, model, demonstrations, batch_size=batch_size, progress=False)
        with _peak(found):
            mine = _time(job, 2)
        note = f"peak {found[0]:.0f} MB beyond the model"
        yield Measured(title, f"collect 3 x {n} chats at every layer, batch_size={batch_size}", mine, note)
    begin = str(model.tokenizer.bos_token)
    texts = [join(row.prompt, getattr(row, role)).removeprefix(begin) for role in ROLES for row in demonstrations]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    theirs = _time(lambda: training_loops.steering_vectors(plain, model.tokenizer, pairs, 16), 1, 0)
    yield Measured(title, "the same, steering-vectors' loop", theirs, f"ours x{theirs / mine:.2f}")
    some = texts[::5]
    theirs = 5 * _time(lambda: training_loops.repeng(plain, model.tokenizer, some, 32), 1, 0)
    yield Measured(title, "the same, repeng's loop, on one in 5, times 5", theirs, f"ours x{theirs / mine:.2f}")
    activations = collect_activations(model, demonstrations, progress=False)
    for where in ("cpu", str(model.cfg.device)):
        fitted = _time(lambda where=where: SEA(0.9).fit(activations, device=where, progress=False), 1, 0)  # type: ignore[misc]
        yield Measured(title, f"fit SEA(0.9) at every layer, n={n}, device={where}", fitted)


def _scoring(title: str, model: TransformerBridge, plain: nn.Module, editor: Editor) -> Iterator[Measured]:
    questions = truthfulqa(model.tokenizer, 100)
    for batch_size in (32, LARGE):
        for name, edit in (("", None), (", edited at every layer", editor)):
            found: list[float] = []
            job = partial(score_answers, model, questions, edit, batch_size=batch_size, progress=False)
            with _peak(found):
                taken = _time(job, 2)
            what = f"score 100 TruthfulQA-like questions{name}, batch_size={batch_size}"
            yield Measured(title, what, taken, f"peak {found[0]:.0f} MB")
    found = []
    with _peak(found):
        taken = _time(lambda: measure_damage(model, [row.prompt for row in questions[:20]], editor), 1, 0)
    yield Measured(
        title, "measure_damage, 20 questions and the shipped sample of text", taken, f"peak {found[0]:.0f} MB"
    )


def _ablation(title: str, model: TransformerBridge, plain: nn.Module, editor: Editor) -> Iterator[Measured]:
    questions = truthfulqa(model.tokenizer, 12)
    options = {"modes": ["only", "without"], "control": 0, "damage": False, "batch_size": LARGE, "progress": False}
    found: list[float] = []
    with _peak(found):
        taken = _time(partial(ablate_layers, model, questions, editor, **options), 1, 0)  # type: ignore[arg-type]
    settings = 2 + 2 * len(editor.sites)
    full = settings * _time(partial(score_answers, model, questions, editor, batch_size=LARGE, progress=False), 2)
    note = f"{settings} settings; one scoring each {full:.2f} s; peak {found[0]:.0f} MB"
    yield Measured(title, f"ablate only + without, 12 questions, batch_size={LARGE}", taken, note)


def _fits(device: str, tiny: bool) -> Iterator[Measured]:
    """The published procedure on the GPU too: two full decompositions in float64."""
    for d, n in ((256, 100),) if tiny else ((2048, 1000), (4096, 2000)):
        sides = [side.to(device) for side in worlds.activations(n, d)]
        neutral, positive, negative = sides
        activations = Activations.from_tensors(neutral={0: neutral}, positive={0: positive}, negative={0: negative})
        for center in (False, True):
            mine = _time(partial(SEA(0.998, center=center).fit, activations, progress=False), 2)
            bases = [partial(published.leading_directions, neutral, other, 0.998, center) for other in sides[1:]]
            theirs = sum(_time(each, 1, 0) for each in bases)
            kind = "centered" if center else "uncentered"
            yield Measured("", f"fit d={d} n={n}, {kind}", mine, f"published on the same device {theirs:.2f} s")
