"""The command line run in this process, and an editor for the embedded model."""

import sys
import warnings

import pytest
import torch

from sea_lens import Editor, EditorCard, cli
from sea_lens.cli.app import console
from sea_lens.edits import LowRankEdit


@pytest.fixture
def sea_lens(monkeypatch, capsys):
    """Runs the command in this process: exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "160")
    for side, size in (("_width", 160), ("_height", 50)):  # which a dumb terminal would not take from the environment
        monkeypatch.setattr(console, side, size)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sea-lens", *map(str, arguments)])
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


@pytest.fixture(scope="module")
def editor_folder(tmp_path_factory):
    """An editor that fits the embedded model."""
    basis, _ = torch.linalg.qr(torch.randn(128, 2, generator=torch.Generator().manual_seed(0)))
    edit = LowRankEdit(basis, torch.tensor([0.75, -0.5]))
    path = tmp_path_factory.mktemp("cli") / "editor"
    facts = {"rank_positive": 1, "rank_negative": 1, "displacement": 0.125}
    Editor({1: edit, 2: edit.scaled(0.5)}, EditorCard("by hand", {"seed": 3}, layers={1: facts})).save_pretrained(path)
    return path
