"""`SEA_LENS_EDITOR=folder vllm serve MODEL`: asked by the `openai` client over loopback, answers are the bridge's."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not here; `make serve-test` runs this")

from serving.conftest import ask, edit, server

import sea_lens as sl


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


@pytest.mark.parametrize("kind", ["tensor", "pipeline"])
def test_over_two_processes(kind, tiny_folder, prompts, editors, answers_of, saved, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    options = (f"--{kind}-parallel-size", "2", "--distributed-executor-backend", "mp")
    name = "generated, sparing"
    with server(tiny_folder, saved(editors[name]), *options) as address:
        found = ask(address, prompts, tiny_folder)
    assert found == answers_of(editors[name])


def test_an_editor_of_another_model_stops_the_start(tiny_folder, saved):
    with server(tiny_folder, saved(sl.Editor({1: edit(8)})), expect_failure=True) as log:
        assert "This editor is for d_model 8" in log
