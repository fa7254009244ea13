"""An edit on tokens, and on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import published, worlds
from benchmarks.timing import Row, distance, in_turns
from sea_lens import Editor
from sea_lens.editing.affine import AffineEdit


def apply_rows() -> Iterator[Row]:
    """One edit on one token, and on a batch of them."""
    edit = worlds.random_editor(4096, 1, 64)[0]
    assert isinstance(edit, AffineEdit)
    keep, remove = dense(edit)
    for tokens in (1, 256):
        h = torch.randn(1, tokens, 4096, generator=torch.Generator().manual_seed(1))
        repeats = 100 if tokens == 1 else 15
        with torch.no_grad():
            apart = distance(edit(h), published.edit(h, keep, remove))
            times = in_turns(partial(published.edit, h, keep, remove), partial(edit, h), repeats)
        what = f"apply an edit, d=4096, ranks 64+64, {tokens} token{'s' * (tokens > 1)}"
        yield Row(what, *times, 10, f"{apart:.1e} apart", apart < 1e-5, (repeats, repeats))


def disk_rows() -> Iterator[Row]:
    """A saved editor."""
    editor = worlds.random_editor(4096, 32, 64)
    with tempfile.TemporaryDirectory() as folder:
        editor.save_pretrained(folder)
        ours = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        same = Editor.from_pretrained(folder).fingerprint == editor.fingerprint
    dense = 2 * 32 * 4096 * 4096 * 4
    exactness = "reads back equal to the bit" if same else "reads back otherwise"
    yield Row("editor on disk, 32 layers, d=4096, ranks 64+64", dense / 1e6, ours / 1e6, 25, exactness, same, unit="MB")


def dense(edit: AffineEdit) -> tuple[torch.Tensor, torch.Tensor]:
    """`P+` and `P-` with `P+ + P- = I + W diag(lam) W^T`: as dense as the published ones, whatever they are made of."""
    w, lam = edit.directions, edit.eigenvalues
    up, down = w[:, lam > 0], w[:, lam < 0]
    return (up * lam[lam > 0]) @ up.T, torch.eye(len(w)) + (down * lam[lam < 0]) @ down.T
