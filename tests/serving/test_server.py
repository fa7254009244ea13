"""`SEA_LENS_EDITOR=folder vllm serve MODEL`: asked by the `openai` client over loopback, answers are the bridge's."""

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not here; `make serve-test` runs this")

from serving.conftest import ANSWER, ask, edit, server

import sea_lens as sl
from sea_lens.errors import InputError


@pytest.fixture
def saved(tmp_path):
    def save(editor):
        editor.save_pretrained(tmp_path / "editor")
        return tmp_path / "editor"

    return save


def test_the_plain_server_answers_as_the_bridge(tiny_folder, prompts, answers_of):
    with server(tiny_folder, None, "--enforce-eager") as address:
        assert ask(address, prompts, tiny_folder) == answers_of()


@pytest.mark.parametrize("name", ["every token", "generated, sparing", "a condition"])
def test_the_edited_server_answers_as_the_edited_bridge(name, tiny_folder, prompts, editors, answers_of, saved):
    """Without an option: the plugin turns off what the editor cannot act under."""
    with server(tiny_folder, saved(editors[name])) as address:
        found = ask(address, prompts, tiny_folder)
    assert found == answers_of(editors[name])
    assert found != answers_of()


def test_over_two_processes(tiny_folder, prompts, editors, answers_of, saved, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    options = ("--tensor-parallel-size", "2", "--distributed-executor-backend", "mp")
    name = "generated, sparing"
    with server(tiny_folder, saved(editors[name]), *options) as address:
        found = ask(address, prompts, tiny_folder)
    assert found == answers_of(editors[name])


QUESTIONS = ["What is the capital of France?", "Name a color of the rainbow.", "Write one sentence about the sea."]


def test_smollm2_is_asked_over_http(saved, tmp_path):
    """A real model (dequantized Q4), its chat template, and an edit of twelve layers that spares the first token."""
    import openai

    try:
        model = sl.load_model("smollm2", device="cpu")
    except InputError as missing:
        pytest.skip(f"SmolLM2 is not here: {missing}")
    folder = Path(model.original_model.config._name_or_path)
    editor = sl.Editor({layer: edit(576, layer).scaled(0.1) for layer in range(10, 22)}).at_positions(1)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    options = {"max_new_tokens": 16, "batch_size": 1}
    wanted = [sl.generate(model, chats, **options), sl.generate(model, chats, editor, **options)]
    (tmp_path / "log").mkdir()
    found = []
    for served in (None, saved(editor)):
        with server(folder, served, "--enforce-eager", log_folder=tmp_path / "log") as address:
            client = openai.OpenAI(base_url=address, api_key="none", timeout=ANSWER, max_retries=0)
            answers = [
                client.chat.completions.create(model=str(folder), messages=chat, max_tokens=16, temperature=0)
                for chat in chats
            ]
        found.append([answer.choices[0].message.content for answer in answers])
    assert [list(map(str.strip, texts)) for texts in found] == [list(map(str.strip, texts)) for texts in wanted]
    assert found[0] != found[1]


def test_an_editor_of_another_model_stops_the_start(tiny_folder, saved):
    with server(tiny_folder, saved(sl.Editor({1: edit(8)})), expect_failure=True) as log:
        assert "This editor is for d_model 8" in log
