import shlex
from pathlib import Path

import pytest
from conftest import assert_is_one_error

from sea_lens import Demonstrations


@pytest.fixture
def here(tmp_path, monkeypatch, editor_folder):
    """A folder with an editor and a file of demonstrations."""
    Demonstrations.from_lists(["q"], ["a"], ["b"]).to_jsonl(tmp_path / "demos.jsonl")
    Path(tmp_path / "editor").symlink_to(editor_folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("effects editor organism demos.jsonl", "sea-lens effects organism editor demos.jsonl"),
        ("effects gpt2 demos.jsonl editor", "sea-lens effects gpt2 editor demos.jsonl"),
        ('generate "Who is it?" organism editor', 'sea-lens generate organism editor "Who is it?"'),
        ("fit sea demos.jsonl organism", "The order is MODEL DEMONSTRATIONS: sea-lens fit sea organism demos.jsonl"),
        ("evaluate organism bbq organism", "The benchmark stands first: sea-lens evaluate bbq organism organism"),
        (
            "evaluate bbq organism editor",
            "'editor' is an editor's folder, and DATA takes a file of data. Give it as --editor",
        ),
        ("inspect organism", "'organism' is a model, and EDITOR takes an editor's folder."),
        ("effects organism editor", "Missing argument 'QUESTIONS'. The order is MODEL EDITOR QUESTIONS"),
        ("fit sae organism organism", "There is no method 'sae'. Did you mean sake or sea or sas"),
        ("fit nonsense organism organism", "There is no method 'nonsense'. There are: ace, "),
        ("evaluate", "Give a benchmark: "),
        ("methods sea", "Got 1 more than `sea-lens methods` takes: sea"),
    ],
)
def test_words_in_another_order_are_put_right(sea_lens, here, typed, told):
    code, _, err = sea_lens(*shlex.split(typed))
    assert code == 2
    assert_is_one_error(err, told)


def test_a_method_may_be_written_as_in_python(sea_lens):
    assert sea_lens("fit", "Mean_Difference", "--help")[1] == sea_lens("fit", "mean-difference", "--help")[1]
