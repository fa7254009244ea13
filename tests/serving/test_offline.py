"""`serving.attach` on a real vLLM engine answers as the bridge does under the same editor, token for token."""

import os

import pytest
import torch

vllm = pytest.importorskip("vllm", reason="vLLM is not here; `make serve-test` runs this")

from serving.conftest import BY_PROMPT, LENGTH, PROMPTS, QUIETLY, edit  # noqa: E402

import sea_lens as sl  # noqa: E402
from sea_lens import serving  # noqa: E402
from sea_lens.errors import HookNeverFiredError, InputError, ModelMismatchError  # noqa: E402


@pytest.fixture(scope="module")
def engine_of(tiny_folder):
    """Engines in processes of their own, one at a time."""
    made = {}

    def of(**options):
        key = tuple(options.items())
        if key not in made:
            for old in list(made):
                made.pop(old).llm_engine.engine_core.shutdown()
            with pytest.MonkeyPatch.context() as patch:
                for name, value in QUIETLY.items():
                    patch.setenv(name, value)
                made[key] = vllm.LLM(str(tiny_folder), dtype="float32", max_model_len=256, max_num_seqs=8, **options)
        return made[key]

    yield of
    for old in made.values():
        old.llm_engine.engine_core.shutdown()


def answers(engine, prompts):
    sampling = vllm.SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    found = engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in found]


@pytest.fixture(scope="module")
def sharing(engine_of):
    """Prefix caching, and prompts in parts of at most 16 tokens together."""
    return engine_of(
        enforce_eager=True, enable_prefix_caching=True, enable_chunked_prefill=True, max_num_batched_tokens=16
    )


def test_editors_of_positions_under_prefix_caching_and_chunked_prefill(sharing, prompts, editors, answers_of):
    plain = answers(sharing, prompts)
    assert plain == answers_of()
    for name, editor in editors.items():
        if name in BY_PROMPT:
            with pytest.raises(InputError, match="enable_prefix_caching=False"):
                serving.attach(sharing, editor)
            continue
        with serving.attach(sharing, editor) as engine:
            found = answers(engine, prompts)
            assert answers(engine, prompts) == found, name  # from the prefix cache now
        assert found == answers_of(editor), name
        assert found != plain, name
    assert answers(sharing, prompts) == plain


def test_attachments_nest_and_say_when_they_did_nothing(sharing, prompts, editors, answers_of, bridge):
    one, other = editors["from 1"], editors["hook_mlp_out"]
    handle = serving.attach(sharing, one)
    with serving.attach(sharing, other):
        found = answers(sharing, prompts)
    with one.attached(bridge):
        assert found == answers_of(other)
    assert "Attachment(on)" in repr(handle)
    handle.detach()
    handle.detach()  # which it is already
    assert "Attachment(off)" in repr(handle)
    never = pytest.raises(HookNeverFiredError, match="no forward pass reached any at the positions chosen")
    with never, serving.attach(sharing, one.at_positions(250)):
        answers(sharing, prompts)
    with pytest.raises(ModelMismatchError, match="d_model 8"):
        serving.attach(sharing, sl.Editor({0: edit(8)}))
    with pytest.raises(ModelMismatchError, match="no module stands for"):
        serving.attach(sharing, sl.Editor({"blocks.1.ln2.hook_normalized": edit(64)}))


def test_editors_that_must_know_the_prompt(engine_of, prompts, editors, answers_of):
    engine = engine_of(
        enforce_eager=True, enable_prefix_caching=False, enable_chunked_prefill=True, max_num_batched_tokens=16
    )
    plain = answers(engine, prompts)
    for name in BY_PROMPT:
        if "condition" in name:
            with pytest.raises(InputError, match="enable_chunked_prefill=False"):
                serving.attach(engine, editors[name])
            continue
        with serving.attach(engine, editors[name]):
            found = answers(engine, prompts)
        assert found == answers_of(editors[name]), name
        assert found != plain, name


def test_conditions_on_the_prompt(engine_of, prompts, editors, answers_of):
    engine = engine_of(enforce_eager=True, enable_prefix_caching=False, enable_chunked_prefill=False)
    plain = answers(engine, prompts)
    for name in ("a condition", "a condition, generated"):
        with serving.attach(engine, editors[name]):
            found = answers(engine, prompts)
        assert found == answers_of(editors[name]), name
        same = [one == other for one, other in zip(found, plain, strict=True)]
        assert any(same), "the condition is met by every prompt"
        assert not all(same), "the condition is met by no prompt"


def test_over_two_stages_of_a_pipeline(engine_of, prompts, editors, answers_of, monkeypatch):
    """Each stage has its own layers. vLLM 0.32 makes what goes between stages in a dry run, which on CPUs it leaves out."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    engine = engine_of(
        enforce_eager=True,
        enable_prefix_caching=False,
        pipeline_parallel_size=2,
        distributed_executor_backend="mp",
    )
    engine.collective_rpc("execute_dummy_batch")
    assert answers(engine, prompts) == answers_of()
    for name in ("every token", "generated, sparing"):
        with serving.attach(engine, editors[name]):
            assert answers(engine, prompts) == answers_of(editors[name]), name


def test_a_compiled_model_is_refused(engine_of, editors):
    with pytest.raises(InputError, match="enforce_eager=True"):
        serving.attach(engine_of(), editors["every token"])


def test_there_are_prompts_of_several_lengths():
    assert len({len(prompt) for prompt in PROMPTS}) > 2
    assert torch.get_num_threads() >= 1
    assert os.environ.get("SEA_LENS_EDITOR") is None
