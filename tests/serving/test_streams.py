"""Hooks on layers of vLLM's form: the stream is edited, whatever pair or tensor it is passed on as; without vLLM."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_bridge, make_editor
from torch import nn
from transformers import AutoModelForCausalLM

import sea_lens as sl
from sea_lens.editing.conditions import WhenAligned
from sea_lens.editing.sparing import NotMassive
from sea_lens.editing.where import Both, From, GeneratedOnly, PromptOnly, Slice
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError
from sea_lens.models.passes import tracked
from sea_lens.models.sites import Site
from sea_lens.serving import attach, plugin
from sea_lens.serving.installing import check_engine, install
from sea_lens.serving.requests import needs_prompts
from sea_lens.serving.streams import by_token, hook_input, hook_output

PROMPTS = [[5, 9, 40, 7], [11, 12], [90, 3, 8, 77, 21, 6]]


class Pair(nn.Module):
    """A decoder layer of vLLM's contract around one of Hugging Face: hands on what it adds, and what it adds it to."""

    def __init__(self, layer: nn.Module, rotary: nn.Module) -> None:
        super().__init__()
        self.layer, self.rotary = layer, [rotary]
        self.self_attn, self.mlp = layer.self_attn, layer.mlp

    def forward(self, positions, hidden_states, residual):
        stream = hidden_states if residual is None else hidden_states + residual
        text = (positions == 0).cumsum(0)
        apart = (text[:, None] != text[None]) | (positions[:, None] < positions[None])
        mask = torch.zeros(apart.shape).masked_fill(apart, -1e9)[None, None]
        x, where = stream[None], positions[None]
        return self.layer(x, mask, where, position_embeddings=self.rotary[0](x, where))[0] - stream, stream


class Packed(nn.Module):
    """A Llama that runs all requests' tokens in one row, as vLLM does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm, self.head = model.model.embed_tokens, model.model.norm, model.lm_head
        self.layers = nn.ModuleList(Pair(layer, model.model.rotary_emb) for layer in model.model.layers)

    def forward(self, input_ids, positions):
        hidden, residual = self.embed(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        return self.head(self.norm(hidden + residual))


class Runner:
    """A model runner with what is read of vLLM's first one, and a pass over whole prompts."""

    def __init__(self, model: nn.Module, prompt_lengths: list[int]) -> None:
        self.model = model
        counts = [len(prompt) for prompt in PROMPTS]
        self.query_start_loc = SimpleNamespace(np=np.cumsum([0, *counts, 0]))
        self.input_batch = SimpleNamespace(
            num_reqs=len(counts),
            req_ids=[f"request {number}" for number in range(len(counts))],
            num_computed_tokens_cpu=np.zeros(9, int),
            num_prompt_tokens=np.array([*prompt_lengths, 7, 7]),
        )
        self.requests = dict.fromkeys(self.input_batch.req_ids)

    def get_model(self):
        return self.model

    def _prepare_inputs(self):
        return None

    @torch.no_grad()
    def run(self, prepared=True):
        if prepared:
            self._prepare_inputs()
        ids = torch.tensor([token for prompt in PROMPTS for token in prompt])
        positions = torch.cat([torch.arange(len(prompt)) for prompt in PROMPTS])
        return self.model(input_ids=ids, positions=positions)


def config_of(model, **changes):
    """A configuration of vLLM's, as far as it is read."""
    given = {"prefix": False, "chunked": False, "ranks": 1, "stages": 1, "mode": 0, "speculative": None} | changes
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_text_config=model.config, model="tiny-llama", dtype=torch.float32, uses_mrope=given.get("mrope", False)
        ),
        compilation_config=SimpleNamespace(mode=given["mode"], cudagraph_mode=0),
        cache_config=SimpleNamespace(enable_prefix_caching=given["prefix"], kv_sharing_fast_prefill=False),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=given["ranks"],
            pipeline_parallel_size=given["stages"],
            prefill_context_parallel_size=1,
            use_ubatching=False,
        ),
        scheduler_config=SimpleNamespace(enable_chunked_prefill=given["chunked"]),
        kv_transfer_config=given.get("transfer"),
        speculative_config=given["speculative"],
    )


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(build_bridge("llama").original_model.config).eval()


def worker_of(plain, prompt_lengths=(4, 2, 6), **changes):
    runner = Runner(Packed(plain), list(prompt_lengths))
    return SimpleNamespace(model_runner=runner, vllm_config=config_of(plain, **changes))


SITES = ["resid_pre", "attn.hook_z", "attn_out", "mlp.hook_post", "mlp_out", "resid_post"]


@torch.no_grad()
@pytest.mark.parametrize("where", ["all", 1, "sparing", "prompt", [-1], "generated", "condition"])
def test_requests_in_one_row_are_edited_as_each_alone(where, plain):
    """The oracle is the plain model, one text at a time; the prompt ends where each of them says."""
    lengths = [3, 2, 4]
    direction = plain.model.embed_tokens.weight[5]
    condition = WhenAligned(0, direction, threshold=0.05)
    spared = NotMassive(True, (("blocks.2.hook_resid_post", 6.0),))
    editor = make_editor() if where != "condition" else make_editor(layers=(1, 2)).when(condition)
    if where != "condition":
        editor = editor.at_positions(spared if where == "sparing" else where)
    worker = worker_of(plain, lengths)
    before, installed = worker.model_runner.run(), install(worker, editor)
    found = worker.model_runner.run()
    installed.remove()
    wanted = []
    for prompt, length in zip(PROMPTS, lengths, strict=True):
        with tracked(plain) as passes, passes.telling(length):
            if where == "generated" and length == len(prompt):  # nothing to edit, which would be an error
                wanted.append(plain(torch.tensor([prompt])).logits[0])
                continue
            with editor.attached(plain):
                wanted.append(plain(torch.tensor([prompt])).logits[0])
    torch.testing.assert_close(found, torch.cat(wanted), atol=2e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.1
    assert torch.equal(worker.model_runner.run(), before)
    assert any(installed.report().values())
    assert "_prepare_inputs" not in vars(worker.model_runner)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in worker.model_runner.model.modules())


@torch.no_grad()
def test_every_site_is_that_of_the_plain_model(plain):
    for name in SITES:
        site = Site(1, name)
        width = 64 if name == "mlp.hook_post" else 32
        generator = torch.Generator().manual_seed(3)
        editor = sl.Editor({site: sl.AffineEdit.of_shift(torch.randn(width, generator=generator))}).at_positions([1, 3])
        worker = worker_of(plain)
        installed = install(worker, editor)
        found = worker.model_runner.run()
        installed.remove()
        with editor.attached(plain):
            wanted = torch.cat([plain(torch.tensor([prompt])).logits[0] for prompt in PROMPTS])
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_dry_runs_and_layers_of_other_stages(plain):
    class PPMissingLayer(nn.Identity):
        """What vLLM has in place of a layer of another stage."""

    worker = worker_of(plain)
    worker.model_runner.model.layers[0] = PPMissingLayer()
    installed = install(worker, make_editor(layers=(0, 1)).at_positions("prompt"))
    assert installed.report() == {"blocks.1.hook_resid_post": False}
    installed.remove()

    conditional = make_editor(layers=(1, 2)).when(WhenAligned(0, torch.ones(32), threshold=-2.0))
    worker = worker_of(plain)
    before, installed = worker.model_runner.run(), install(worker, conditional)
    assert torch.equal(worker.model_runner.run(prepared=False), before)  # a dry run has no requests to decide on
    assert not torch.equal(worker.model_runner.run(), before)
    worker.model_runner.input_batch.num_prompt_tokens[1] = 3  # of which the pass holds two
    with pytest.raises(InputError, match="runs the prompt of request request 1 in parts"):
        worker.model_runner.run()


def test_streams_that_are_sums_already_or_no_sums_at_all():
    class Sum(nn.Module):
        def forward(self, positions, hidden_states):
            return hidden_states + 1, hidden_states  # as StableLM's: the second is not to be added

    class Streams(nn.Module):
        def forward(self, positions, hidden_states):
            return hidden_states[None].expand(4, -1, -1)  # as Gemma 3n's

    class Other(nn.Module):
        def forward(self, states):
            return states

    x, act = torch.zeros(3, 2), by_token(lambda tensor, hook: tensor + 10, None)
    layer = Sum()
    hook_output(layer, act)
    assert torch.equal(layer(None, x)[0], x + 11)
    hook_input(layer, act)
    assert torch.equal(layer(None, hidden_states=x)[0], x + 21)
    layer = Streams()
    hook_output(layer, act)
    with pytest.raises(ModelMismatchError, match=r"shape \[4, 3, 2\]"):
        layer(None, x)
    with pytest.raises(ModelMismatchError, match="Other takes states"):
        hook_input(Other(), act)


def test_a_token_that_is_not_edited_keeps_its_bits():
    class Layer(nn.Module):
        def forward(self, positions, hidden_states, residual):
            return hidden_states, residual

    generator = torch.Generator().manual_seed(0)
    hidden, residual = torch.randn(5, 8, generator=generator).bfloat16(), 1e4 * torch.randn(5, 8, generator=generator)
    layer, mask = Layer(), torch.arange(5)[:, None, None] == 2
    hook_output(layer, by_token(lambda x, hook: torch.where(mask, x + 100, x), None))
    edited, _ = layer(None, hidden, residual.bfloat16())
    assert torch.equal(edited[mask[:, 0, 0].logical_not()], hidden[mask[:, 0, 0].logical_not()])
    assert not torch.equal(edited[2], hidden[2])


def test_what_must_know_the_prompt():
    edits = make_editor().edits
    for where in (None, From(1), Slice(0, 9), NotMassive(True), Both(From(2), NotMassive(True))):
        assert not needs_prompts(where, edits)
    for where in (From(-1), Slice(-3, None), PromptOnly(), GeneratedOnly(), Both(GeneratedOnly(), NotMassive(True))):
        assert needs_prompts(where, edits)


@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_served_is_refused(plain):
    editor = make_editor()
    condition = WhenAligned(0, torch.ones(32), threshold=0.0)
    refused = [
        ({"mode": 3}, editor, "enforce_eager=True"),
        ({"transfer": 1}, editor, "kv_transfer_config"),
        ({"mrope": True}, editor.at_positions(1), "M-RoPE"),
        ({"prefix": True}, editor.at_positions("prompt"), "enable_prefix_caching=False"),
        ({"speculative": 1}, editor.at_positions("prompt"), "speculative decoding"),
        ({"chunked": True}, make_editor(layers=(1,)).when(condition), "enable_chunked_prefill=False"),
        ({"stages": 2}, make_editor(layers=(1,)).when(condition), "one pipeline stage"),
        ({}, editor.at_positions(torch.ones(2, 3)), "position mask is for one batch"),
        ({"ranks": 2}, make_editor(site="attn.hook_z"), "split over 2 tensor-parallel ranks"),
        ({"ranks": 2}, make_editor(site="mlp_out"), "cannot be told that"),
        ({}, make_editor(site="resid_mid"), "On vLLM no module stands for"),
        ({}, sl.Editor({7: make_editor()[0]}), "7"),
    ]
    for changes, refused_editor, words in refused:
        worker = worker_of(plain, **changes)
        with pytest.raises((InputError, ModelMismatchError), match=words):
            install(worker, refused_editor)
        assert not any(each._forward_hooks for each in worker.model_runner.model.modules())
    check_engine(config_of(plain, prefix=True, chunked=True), editor.at_positions(1))  # positions alone: both are right
    with pytest.raises(InputError, match=r"A vllm\.LLM is needed"):
        attach(plain, editor)
    worker = worker_of(plain)
    del worker.model_runner.input_batch
    with pytest.raises(ModelMismatchError, match="Runner is not known to sea_lens"):
        install(worker, editor.at_positions("prompt"))


def test_the_plugin_installs_in_each_worker_and_stops_an_engine_that_is_edited_in_part(plain, tmp_path):
    """With the functions that the plugin puts into vLLM's classes, and workers as above."""
    editor = make_editor().at_positions("prompt")
    editor.save_pretrained(tmp_path)
    served = {"editor": str(tmp_path), "fingerprint": editor.fingerprint, "sites": [str(site) for site in editor.sites]}
    workers = [worker_of(plain), worker_of(plain)]
    for worker in workers:
        worker.vllm_config.additional_config = {plugin.KEY: served}
        worker.load_model = lambda **options: None
        before = worker.model_runner.run()
        plugin._load_model(SimpleNamespace(worker=worker))
        assert not torch.equal(worker.model_runner.run(), before)
    executor = SimpleNamespace(
        vllm_config=workers[0].vllm_config, collective_rpc=lambda name: [plugin._report(worker) for worker in workers]
    )
    start = plugin._checked(lambda executor, configs: "started")
    assert start(executor, []) == "started"
    workers[1].vllm_config.additional_config = {}
    with pytest.raises(InputError, match="Set SEA_LENS_EDITOR alike on every node"):
        start(executor, [])
    workers[1].vllm_config.additional_config = {plugin.KEY: served}
    served["sites"].append("blocks.7.hook_resid_post")
    with pytest.raises(ModelMismatchError, match=r"No worker of this engine has blocks\.7"):
        start(executor, [])


def test_an_engine_is_configured_for_its_editor(plain, tmp_path, monkeypatch):
    monkeypatch.setenv(plugin.VARIABLE, str(tmp_path))
    cases = [
        (make_editor(), {"enforce_eager": True}),
        (make_editor().at_positions(1), {"enforce_eager": True}),
        (make_editor().at_positions("generated"), {"enforce_eager": True, "enable_prefix_caching": False}),
        (
            make_editor(layers=(1,)).when(WhenAligned(0, torch.ones(32), threshold=0.0)),
            {"enforce_eager": True, "enable_prefix_caching": False, "enable_chunked_prefill": False},
        ),
    ]
    create = plugin._configured(lambda args: config_of(plain))
    for editor, wanted in cases:
        editor.save_pretrained(tmp_path)
        args = SimpleNamespace(
            enforce_eager=False, enable_prefix_caching=None, enable_chunked_prefill=None, additional_config={"mine": 1}
        )
        create(args)
        told = args.additional_config.pop(plugin.KEY)
        assert told["fingerprint"] == editor.fingerprint
        changed = {name: value for name, value in vars(args).items() if value not in (None, {"mine": 1})}
        assert changed == wanted
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileFormatError):
        create(args)
    monkeypatch.delenv(plugin.VARIABLE)
    assert create(args).model_config.model == "tiny-llama"


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_engine_or_no_editor_is_said():
    class Engine:
        llm_engine = None

        def collective_rpc(self) -> None: ...

    class AsyncEngine:
        async def collective_rpc(self) -> None: ...

    for words, llm, given in [
        ("None was given. A Hugging Face model or a bridge is edited by", None, make_editor()),
        (r'a str was given. Make one: vllm.LLM\("', "gpt2", make_editor()),
        ("the class Engine was given. Make one", Engine, make_editor()),
        (
            "an AsyncEngine was given. Another engine serves",
            AsyncEngine(),
            make_editor(),
        ),
        ("An Editor is needed, and None was given", Engine(), None),
        (r"An Editor is needed, and a str was given. Editor.from_pretrained\(folder\) reads one", Engine(), "folder"),
    ]:
        with pytest.raises(InputError, match=words):
            attach(llm, given)
