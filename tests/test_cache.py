"""A store goes on after any kill, tells jobs apart, and several processes may share it."""

import json
import multiprocessing
import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sea_lens import (
    Demonstrations,
    Editor,
    EditorCard,
    collect_activations,
    collect_statistics,
    random_editor_like,
)
from sea_lens.cache import Store, digest, load_tensors, name_of, save_tensors, write_text
from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.sites import Site

FACTS = {"model": "gpt2", "layers": (1, 2), "strength": 0.5}


class Plain:
    def __init__(self, value):
        self.value = value

    def __call__(self):
        return self.value


@dataclass
class Keeps:
    value: int
    kept: list = field(default_factory=list, init=False)


class Slotted:
    __slots__ = ()


def make_editor(scale=1.0, layer=0, method="by hand", site="resid_post"):
    direction = scale * torch.eye(4)[:, :1]
    return Editor({Site(layer, site): AffineEdit(direction, direction)}, EditorCard(method))


# --- digest and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        (torch.ones(2, dtype=torch.bfloat16), 1 + torch.ones(2, dtype=torch.bfloat16)),
        (torch.tensor([1j]), torch.tensor([-1j])),
        (np.zeros(2), np.ones(2)),
        (["ab", "c"], ["a", "bc"]),
        ([[1], 2], [1, [2]]),
        ({"a": 1}, {"b": 1}),
        ({1, 2}, {1, 3}),
        (1, 1.0),
        (None, "None"),
        (Path("a"), Path("b")),
        (torch.float16, torch.bfloat16),
        (Plain(1), Plain(2)),
        (Keeps(1), Keeps(2)),
        (len, max),
        (partial(max, 1), partial(max, 2)),
        (Plain(1).__call__, Plain(2).__call__),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_contents_have_another_digest(one, other):
    assert digest(one) != digest(other)


def test_equal_contents_have_one_digest():
    base = torch.randn(6, 4)
    assert digest(base.T) == digest(base.T.contiguous())
    assert digest(base[::2]) == digest(base[::2].clone())
    assert digest(torch.tensor([1j]).conj()) == digest(torch.tensor([complex(0, -1)]))
    assert digest(Plain([base])) == digest(Plain([base.clone()]))
    kept = Keeps(1)
    kept.kept.append(2)
    assert digest(kept) == digest(Keeps(1))
    loop = Plain(None)
    loop.value = [loop]
    assert len(digest(loop, torch.zeros(0, 2), torch.tensor(1.0))) == 16


def test_a_function_is_known_by_the_name_it_is_imported_by():
    assert name_of(make_editor) == f"{__name__}.make_editor"
    assert name_of(Plain.__call__) == f"{__name__}.Plain.__call__"
    assert name_of(partial(make_editor, 2.0)) != name_of(partial(make_editor, 3.0))
    assert name_of(Plain(1)) == name_of(Plain(1)) != name_of(Plain(2))


@pytest.mark.parametrize("found", [name_of, digest, lambda function: digest({"measure": [Plain(function)]})])
def test_functions_without_a_name_of_their_own_are_refused(found):
    def local():
        pass

    for function in (lambda: 1, local, partial(local)):
        with pytest.raises(InputError, match="Define it with def at the top of a module"):
            found(function)


def test_what_cannot_be_read_is_refused_and_not_taken_for_another():
    with pytest.raises(InputError, match="contents of a Slotted cannot be read"):
        digest(Slotted())


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


def test_neither_use_nor_a_round_trip_changes_an_editors_fingerprint(tmp_path):
    editor = make_editor()
    before = editor.fingerprint
    editor[0](torch.randn(3, 4))
    editor.save_pretrained(tmp_path)
    assert before == editor.fingerprint == Editor.from_pretrained(tmp_path).fingerprint
    assert editor.scaled(2.0).scaled(0.5).fingerprint == before


# --- the store --------------------------------------------------------------------------------------------------------


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_pieces_and_rows_are_there_for_the_next_run_until_cleared(tmp_path):
    store = Store(tmp_path, "job", FACTS)
    view = torch.arange(12.0).reshape(3, 4).T
    store.write(3, {"one": view, "two": view[:2]})
    store.write("end", {"one": torch.ones(1)})
    for row in ({"a": [1, None]}, 12, "text\nof two lines"):
        store.append(row)
    again = Store(tmp_path, "job", {**FACTS, "layers": [1, 2]})  # as JSON reads it
    found = again.read(3)
    assert torch.equal(found["one"], view)
    assert torch.equal(found["two"], view[:2])
    assert again.read("end")["one"].item() == 1
    assert again.rows() == [{"a": [1, None]}, 12, "text\nof two lines"]
    assert again.read(4) is None
    again.clear()
    assert names_in(tmp_path) == ["job.json"]
    assert (again.read(3), again.rows()) == (None, [])


def test_a_folder_of_other_facts_is_refused_by_what_differs(tmp_path):
    store = Store(tmp_path, "job", FACTS)
    store.append(1)
    for facts, differs in (({**FACTS, "strength": 1.0}, "strength"), ({"model": "gpt2"}, "layers, strength")):
        with pytest.raises(FileFormatError, match=rf"holds a job that differs in {differs}\. Choose another folder"):
            Store(tmp_path, "job", facts)
    assert store.rows() == [1]


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", "7", b"\xff"], ids=lambda content: str(content)[:3])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / "job.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileFormatError, match=r"job\.json .*Delete the folder"):
        Store(tmp_path, "job", FACTS)


def test_jobs_lie_side_by_side(tmp_path):
    stores = [
        Store.within(tmp_path, "job", FACTS),
        Store.within(tmp_path, "job", {**FACTS, "model": "llama"}),
        Store(tmp_path, "job", {}),
        Store(tmp_path, "other", {}),
    ]
    for number, store in enumerate(stores):
        store.write(0, {"x": torch.tensor(number)})
        store.append(number)
    stores[2].clear()
    assert [store.rows() for store in stores] == [[0], [1], [], [3]]
    assert [None if store.read(0) is None else store.read(0)["x"].item() for store in stores] == [0, 1, None, 3]
    assert Store.within(tmp_path, "job", dict(reversed(FACTS.items()))).rows() == [0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
        lambda path: path.write_bytes(b""),
        lambda path: save_file({"batch": torch.ones(3)}, path),
        lambda path: path.write_bytes((path.parent / "job-000001.safetensors").read_bytes()),
        lambda path: path.unlink(),
    ],
    ids=["cut", "cut header", "one byte", "empty", "not ours", "of another job", "missing"],
)
def test_a_damaged_piece_reads_as_none(tmp_path, damage):
    store = Store(tmp_path, "job", FACTS)
    store.write(0, {"batch": torch.zeros(3)})
    Store(tmp_path / "elsewhere", "job", {}).write(1, {"batch": torch.zeros(3)})
    (tmp_path / "elsewhere" / "job-000001.safetensors").rename(tmp_path / "job-000001.safetensors")
    damage(tmp_path / "job-000000.safetensors")
    assert store.read(0) is None
    store.write(0, {"batch": torch.ones(3)})
    assert torch.equal(store.read(0)["batch"], torch.ones(3))


@pytest.mark.parametrize("torn", ['[2, "tw', "12", "[" * 100_000, "\xff"], ids=lambda torn: torn[:3])
def test_a_torn_last_row_is_dropped_and_the_next_is_whole(tmp_path, torn):
    store = Store(tmp_path, "job", FACTS)
    store.append([1, "one"])
    with (tmp_path / "job.jsonl").open("a", encoding="latin-1") as file:
        file.write(torn)
    again = Store(tmp_path, "job", FACTS)
    assert again.rows() == [[1, "one"]]
    again.append([2, "two"])
    again.append([3, "three"])
    assert again.rows() == Store(tmp_path, "job", FACTS).rows() == [[1, "one"], [2, "two"], [3, "three"]]


def test_a_kill_while_writing_leaves_what_was_there(tmp_path):
    class Killed(KeyboardInterrupt):
        pass

    class Dies(dict):
        def items(self):
            raise Killed

    path = tmp_path / "x.safetensors"
    save_tensors({"a": torch.zeros(2)}, path, {"of": "before"})
    with pytest.raises(Killed):
        save_tensors(Dies(a=torch.ones(2)), path, {})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x.txt", "\ud800")
    tensors, metadata = load_tensors(path)
    assert (tensors["a"].tolist(), metadata) == ([0.0, 0.0], {"of": "before"})
    assert names_in(tmp_path) == ["x.safetensors"]


def writer(folder, number):
    (folder / f"ready-{number}").touch()
    while len(list(folder.glob("ready-*"))) < 3:
        pass
    for turn in range(60):
        store = Store(folder / f"{turn % 3}", "job", {"turn": turn % 3})
        store.write(0, {"x": torch.full((2000,), 7.0)})
        store.append([number, turn])
        write_text(folder / "text", "whole" * 1000)
        assert (found := store.read(0)) is None or found["x"].eq(7).all()
        if turn % 20 == 19:
            (store.path / "job-000000.safetensors").unlink(missing_ok=True)


def test_processes_that_share_a_folder_all_finish(tmp_path):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=writer, args=(tmp_path, number), daemon=True) for number in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join(300)
    assert [process.exitcode for process in running] == [0, 0, 0]
    rows = [row for turn in range(3) for row in Store(tmp_path / f"{turn}", "job", {"turn": turn}).rows()]
    assert sorted(map(tuple, rows)) == [(number, turn) for number in range(3) for turn in range(60)]
    assert (tmp_path / "text").read_text() == "whole" * 1000
    assert not list(tmp_path.rglob("*.partial"))


def test_what_killed_processes_left_unfinished_goes_with_the_pieces(tmp_path):
    store = Store(tmp_path, "job", FACTS)
    for name, age in (("old", 7200), ("of another process", 0)):
        path = tmp_path / f"{name}.partial"
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    store.clear()
    assert names_in(tmp_path) == ["job.json", "of another process.partial"]


@pytest.mark.parametrize("collect", [collect_activations, collect_statistics])
@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_a_kill_between_the_save_and_the_clearing_leaves_nothing_for_good(llama, tmp_path, monkeypatch, collect):
    rows = Demonstrations.from_lists(["a", "b", "c"], ["x y", "z", "q"], ["u", "v v", "w"], ["n", "m", "k"])
    options = {"save_every": 1} if collect is collect_statistics else {}

    def killed(store):
        raise KeyboardInterrupt

    clear = Store.clear
    monkeypatch.setattr(Store, "clear", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(llama, rows, batch_size=1, folder=tmp_path, progress=False, **options)
    monkeypatch.setattr(Store, "clear", clear)
    assert len(names_in(tmp_path)) > 2
    collect(llama, rows, batch_size=1, folder=tmp_path, progress=False, **options)
    assert len(names_in(tmp_path)) == 2


def test_facts_are_kept_as_plain_json(tmp_path):
    Store(tmp_path, "job", FACTS)
    assert json.loads((tmp_path / "job.json").read_text()) == {"model": "gpt2", "layers": [1, 2], "strength": 0.5}
