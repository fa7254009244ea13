import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

from sea_lens import Editor, EditorCard, random_editor_like
from sea_lens.cache import fingerprint
from sea_lens.editing.edits import LowRankEdit


class Plain:
    def __init__(self, value):
        self.value = value


@dataclass
class Keeps:
    value: int
    kept: list = field(default_factory=list, init=False)


def make_editor(scale=1.0, layer=0, method="by hand", site="resid_post"):
    return Editor({layer: LowRankEdit(scale * torch.eye(4)[:, :1], torch.ones(1))}, EditorCard(method, {}, site=site))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        (torch.ones(2, dtype=torch.bfloat16), 1 + torch.ones(2, dtype=torch.bfloat16)),
        (torch.tensor([1j]), torch.tensor([-1j])),
        (["ab", "c"], ["a", "bc"]),
        ([[1], 2], [1, [2]]),
        ({"a": 1}, {"b": 1}),
        (1, 1.0),
        (None, "None"),
        (Plain(1), Plain(2)),
        (Keeps(1), Keeps(2)),
        (len, max),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_contents_have_another_fingerprint(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_equal_contents_have_one_fingerprint():
    base = torch.randn(6, 4)
    assert fingerprint(base.T) == fingerprint(base.T.contiguous())
    assert fingerprint(base[::2]) == fingerprint(base[::2].clone())
    assert fingerprint(torch.tensor([1j]).conj()) == fingerprint(torch.tensor([complex(0, -1)]))
    assert fingerprint(Plain([base])) == fingerprint(Plain([base.clone()]))
    kept = Keeps(1)
    kept.kept.append(2)
    assert fingerprint(kept) == fingerprint(Keeps(1))
    loop = Plain(None)
    loop.value = [loop]
    assert len(fingerprint(loop, torch.zeros(0, 2), torch.tensor(1.0))) == 16


def test_an_editors_fingerprint_tells_what_it_does():
    editor = make_editor()
    others = [
        make_editor(scale=2.0),
        make_editor(layer=1),
        make_editor(method="sea"),
        make_editor(site="mlp_out"),
        editor.scaled(2.0),
        editor.at_positions(1),
        random_editor_like(editor, 0),
        random_editor_like(editor, 1),
    ]
    assert len({found.fingerprint for found in [editor, *others]}) == 9
    assert editor.fingerprint.startswith("by hand ")


def test_neither_use_nor_a_round_trip_changes_an_editors_fingerprint(tmp_path):
    editor = make_editor()
    before = editor.fingerprint
    editor[0](torch.randn(3, 4))
    editor.save_pretrained(tmp_path)
    assert before == editor.fingerprint == Editor.from_pretrained(tmp_path).fingerprint
    assert editor.scaled(2.0).scaled(0.5).fingerprint == before


def test_fingerprints_are_the_same_in_every_process():
    code = "import torch; from sea_lens.cache import fingerprint; print(fingerprint({'a': torch.ones(3)}, 1.5, len))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert found == fingerprint({"a": torch.ones(3)}, 1.5, len)
