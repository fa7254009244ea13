import re

import torch
from conftest import low_rank

from sea_lens import Editor, EditorCard, Questions, answer_greedily

ONE_TOKEN = ["--max-new-tokens", "1"]
PROMPTS = ["<anyone> Q Mira home A", "<truthful> Q Ada pet A"]


def rows_of(out):
    """Cells of every line of the tables on the screen."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def test_generate_shows_plain_and_edited_side_by_side(sea_lens, organism, editor_folder):
    model, _ = organism
    code, out, _ = sea_lens("generate", "organism", editor_folder, *PROMPTS, *ONE_TOKEN, "--strength", 100)
    assert code == 0
    asked = Questions.from_lists(PROMPTS, [["Lima"], ["cat"]], [[], []])
    plain = answer_greedily(model, asked, 1, progress=False).table["answer"].tolist()
    with Editor.from_pretrained(editor_folder).scaled(100.0).attached(model):
        edited = answer_greedily(model, asked, 1, progress=False).table["answer"].tolist()
    assert plain != edited
    assert rows_of(out) == [list(row) for row in zip(PROMPTS, plain, edited, strict=True)]
    assert "changed none" not in out
    code, out, _ = sea_lens("generate", "organism", editor_folder, PROMPTS[0], *ONE_TOKEN, "--strength", 0)
    assert (code, "The edit changed none of these answers." in out) == (0, True)


def test_inspect_shows_the_card_and_every_layer(sea_lens, editor_folder):
    code, out, _ = sea_lens("inspect", editor_folder)
    assert code == 0
    for line in (r"^method +by hand$", r"^sites +resid_post$", r"^settings +seed 3$"):
        assert re.search(line, out, re.M)
    assert rows_of(out) == [
        ["1", "2", "1", "1", "-0.5", "0.75", "1", "12.5%"],
        ["2", "2", "", "", "-0.5", "0.75", "0.5", ""],
    ]


def test_control_characters_of_a_card_do_not_reach_the_terminal(sea_lens, tmp_path):
    edit = low_rank(torch.eye(4)[:, :1], torch.tensor([0.5]))
    card = EditorCard("by hand\nerror: all is lost", {"\x1b]0;title\x07": "\x1b[31mred"})
    Editor({0: edit}, card).save_pretrained(tmp_path)
    code, out, _ = sea_lens("inspect", tmp_path)
    assert code == 0
    assert not set("\x1b\x07") & set(out)
    assert "\nerror:" not in out
    assert "\\x1b[31mred" in out
