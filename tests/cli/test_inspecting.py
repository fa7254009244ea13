import json
import re

import pytest
import torch
from conftest import low_rank

from sea_lens import Editor, EditorCard


def rows_of(out):
    """Cells of every line of the tables on the screen."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def test_inspect_shows_the_card_and_every_layer(sea_lens, editor_folder):
    code, out, _ = sea_lens("inspect", editor_folder)
    assert code == 0
    for line in (r"^method +by hand$", r"^sites +resid_post$", r"^settings +seed 3$"):
        assert re.search(line, out, re.M)
    assert rows_of(out) == [
        ["1", "2", "1", "1", "-0.5", "0.75", "1", "12.5%"],
        ["2", "2", "", "", "-0.5", "0.75", "0.5", ""],
    ]


@pytest.mark.parametrize(
    ("card", "options"),
    [
        (EditorCard("sea", {"explained_variance": 0.5, "center": True}), "sea --explained-variance 0.5 --center"),
        (
            EditorCard("sea", {"explained_variance": 0.998, "center": False}),
            "sea --explained-variance 0.998 --no-center",
        ),
        (EditorCard("mean-difference", {"normalize": False}), "mean-difference (its defaults)"),
        (EditorCard("memit", {"layers": [1], "ridge": 0.5}), "memit --ridge 0.5"),
        (EditorCard("by hand", {"seed": 3}), None),
    ],
)
def test_settings_lead_to_the_options_of_a_fit(sea_lens, tmp_path, card, options):
    Editor({0: low_rank(torch.eye(4)[:, :1], torch.tensor([0.5]))}, card).save_pretrained(tmp_path)
    out = sea_lens("inspect", tmp_path)[1]
    found = re.search(r"^as options +sea-lens fit (.*)$", out, re.M)
    assert (found and found[1]) == options
    told = json.loads(sea_lens("inspect", tmp_path, "--json")[1])["tables"][0]
    assert (told["title"], told["rows"][0]["settings"]) == ("card", dict(card.settings))


def test_control_characters_of_a_card_do_not_reach_the_terminal(sea_lens, tmp_path):
    edit = low_rank(torch.eye(4)[:, :1], torch.tensor([0.5]))
    card = EditorCard("by hand\nerror: all is lost", {"\x1b]0;title\x07": "\x1b[31mred"})
    Editor({0: edit}, card).save_pretrained(tmp_path)
    code, out, _ = sea_lens("inspect", tmp_path)
    assert code == 0
    assert not set("\x1b\x07") & set(out)
    assert "\nerror:" not in out
    assert "\\x1b[31mred" in out
