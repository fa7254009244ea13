"""Tiny models of six architectures, built from configs, and a byte tokenizer; nothing is downloaded."""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy's threads and two workers would wait for each other

import checking
import jaxtyping

with checking.import_hook("sea_lens"):
    import sea_lens
    import sea_lens.cli
    import sea_lens.plotting
    from sea_lens.cli.output import console
    from sea_lens.editing.affine import AffineEdit
    from sea_lens.editing.card import FitReport

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

# Tiny models gain nothing from threads, and lose much where cores are shared with other workers.
torch.set_num_threads(1)

ARCHITECTURES = ["gpt2", "llama", "gemma2", "mistral", "qwen2", "gpt-neox"]
SHARED = Path(__file__).resolve().parents[2] / "shared"
N_LAYERS, D_MODEL = 3, 32
PNG = b"\x89PNG\r\n\x1a\n"
IDS = torch.randint(2, 258, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :3] = MASK[1, :1] = 0
GIVEN = {"attention_mask": MASK, "position_ids": (MASK.cumsum(1) - 1).clamp_min(0)}
"""Three texts, two of them padded on the left."""
LOADERS = ("load_organism", "load_bias_organism", "load_knowledge_organism")
EMBEDDED = {name: cache(getattr(sea_lens, name)) for name in LOADERS}
"""Loaded once for all tests; hooks come and go, weights are never touched."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; the end token doubles as padding, as in GPT-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<bos>", "<eos>", *alphabet])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
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


def build_bridge(architecture: str, dtype: torch.dtype = torch.float32, **changes) -> TransformerBridge:
    """A random model with weights large enough that layers do something."""
    common = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.1}
    sizes = {
        "hidden_size": D_MODEL,
        "intermediate_size": 64,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    if architecture == "gpt2":
        config = GPT2Config(n_embd=D_MODEL, n_layer=N_LAYERS, n_head=4, n_positions=128, **common)
    elif architecture == "gpt-neox":
        config = GPTNeoXConfig(**sizes, **common)
    elif architecture == "opt":
        sizes.pop("intermediate_size"), common.pop("initializer_range")
        config = OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=D_MODEL, init_std=0.1, **common)
    elif architecture == "gemma2":
        config = Gemma2Config(**sizes, num_key_value_heads=2, head_dim=8, **common)
    else:
        kind = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[architecture]
        config = kind(**sizes, num_key_value_heads=2, **common)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    hf_model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    hf_model.config.architectures = [type(hf_model).__name__]
    return TransformerBridge.boot_transformers(
        f"tiny-{architecture}", hf_model=hf_model, tokenizer=byte_tokenizer(), device="cpu", dtype=dtype
    )


def low_rank(directions, eigenvalues, shift=None, restore_norm=True, **options):
    """An edit as SEA's: symmetric, and with the token's norm restored."""
    return AffineEdit.of_eigenvalues(directions, eigenvalues, shift, restore_norm=restore_norm, **options)


def edit(width: int) -> AffineEdit:
    """One that moves a token by about its own length, and keeps its norm."""
    generator = torch.Generator().manual_seed(width)
    basis = torch.linalg.qr(torch.randn(width, 3, generator=generator))[0]
    shift = 0.5 * torch.randn(width, generator=generator)
    return AffineEdit.of_eigenvalues(basis, torch.tensor([1.0, -1.0, 2.0]), shift, restore_norm=True)


def make_editor(layers=(0, 2), site="resid_post", strength=1.0, seed=0):
    """An editor of tiny models: three directions and a shift per layer."""
    generator = torch.Generator().manual_seed(seed)
    edits = {}
    for layer in layers:
        directions = torch.linalg.qr(torch.randn(D_MODEL, 3, generator=generator)).Q
        shift = torch.randn(D_MODEL, generator=generator) / 2
        edits[sea_lens.Site(layer, site)] = low_rank(
            directions, torch.tensor([1.5, 0.5, -1.0]), shift, strength=strength
        )
    return sea_lens.Editor(edits, sea_lens.EditorCard("by hand", {}))


def pytest_collection_modifyitems(items):
    """Files of few, long tests go first: a worker that got one last would leave the other idle for minutes."""
    long = ("test_tutorials.py", "test_readme.py", "test_demo.py", "test_distributed.py")
    items.sort(key=lambda item: item.path.name not in long)


def pytest_collection_finish():
    """What is imported by now stays: the collector of garbage need never look through it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", params=ARCHITECTURES)
def bridge(request) -> TransformerBridge:
    """A tiny random model of each architecture in turn."""
    return build_bridge(request.param)


@pytest.fixture(scope="session")
def llama() -> TransformerBridge:
    """A tiny random Llama."""
    return build_bridge("llama")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real published files, where this checkout stands beside them."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder ../shared/data with published data files is not here")
    return SHARED / "data"


@pytest.fixture(scope="session")
def some_data(shared_data, tmp_path_factory):
    """The same by name, but for most of the lines: layouts show in the first, and whole files take seconds to read."""
    folder = tmp_path_factory.mktemp("data")

    def first_lines(name: str) -> Path:
        path = folder / name
        if name.endswith(".json"):
            return shared_data / name
        if not path.exists():
            with (shared_data / name).open(encoding="utf-8") as lines:
                path.write_text("".join(islice(lines, 60)), encoding="utf-8")
        return path

    return first_lines


@pytest.fixture(scope="session")
def stories() -> Path:
    """A folder with a small trained Llama, where this checkout stands beside it."""
    path = SHARED / "models" / "stories260K"
    if not path.is_dir():
        pytest.skip("the folder ../shared/models/stories260K is not here")
    return path


@pytest.fixture(scope="session")
def organism():
    """The embedded model and its world."""
    return EMBEDDED["load_organism"]("cpu")


@pytest.fixture
def shared_models(monkeypatch):
    """Pages that load an embedded model get the one that is loaded already."""
    for name, load in EMBEDDED.items():
        monkeypatch.setattr(sea_lens, name, lambda load=load: load("cpu"))


@pytest.fixture
def without_type_checks(monkeypatch):
    """As users run it: our own errors, where the tests' type checks would speak first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def run_command(*arguments, width=160):
    """Runs `sea-lens` in this process, as users run it: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        patched.setattr(jaxtyping.config, "jaxtyping_disable", True)
        patched.setenv("COLUMNS", str(width))
        for name, load in EMBEDDED.items():
            patched.setattr(f"sea_lens.worlds.load.{name}", load)
        for side, size in (
            ("_width", width),
            ("_height", 50),
        ):  # a dumb terminal would not take them from the environment
            patched.setattr(console, side, size)
        patched.setattr(sys, "argv", ["sea-lens", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            sea_lens.cli.main()
    return stopped.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(name="sea_lens", scope="session")
def command():
    """See `run_command`."""
    return run_command


@pytest.fixture(scope="module")
def editor_folder(tmp_path_factory):
    """An editor that fits the embedded model."""
    basis, _ = torch.linalg.qr(torch.randn(128, 2, generator=torch.Generator().manual_seed(0)))
    edit = low_rank(basis, torch.tensor([0.75, -0.5]))
    path = tmp_path_factory.mktemp("cli") / "editor"
    report = FitReport(2, 0.125, numbers={"rank_positive": 1, "rank_negative": 1})
    card = sea_lens.EditorCard("by hand", {"seed": 3}, reports={sea_lens.Site(1): report})
    sea_lens.Editor({1: edit, 2: edit.scaled(0.5)}, card).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def demos(organism, tmp_path_factory):
    """A file of 30 demonstrations about the embedded model's world, without neutral answers."""
    path = tmp_path_factory.mktemp("cli") / "demos.jsonl"
    organism[1].demonstrations()[:30].to_jsonl(path)
    return path


def with_few_tasks(monkeypatch):
    """Of lm-eval's own tasks, one folder: all of their thousands take seconds to be read."""
    if find_spec("lm_eval") is not None:
        manager = import_module("lm_eval.tasks.manager")
        monkeypatch.setattr(manager, "__file__", str(Path(manager.__file__).parent / "hellaswag" / "manager.py"))


def assert_is_one_error(err, *parts):
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in parts:
        assert part in err


class Passes:
    """Counts forward passes of a model and their tokens, without a hook; at `stop_after` passes the user presses Ctrl-C."""

    def __init__(self, model, stop_after=None):
        self.model, self.stop_after, self.n, self.tokens = model, stop_after, 0, 0

    def __enter__(self):
        self.handle = self.model.original_model.register_forward_pre_hook(self.count, with_kwargs=True)
        return self

    def __exit__(self, *exception):
        self.handle.remove()

    def count(self, module, args, options):
        if self.n == self.stop_after:
            raise KeyboardInterrupt
        self.n += 1
        self.tokens += (args[0] if args else options["input_ids"]).numel()
