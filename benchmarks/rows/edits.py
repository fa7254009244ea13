"""An edit on tokens, in the forward pass of a whole model, and on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformer_lens.model_bridge import TransformerBridge

from benchmarks import published, worlds
from benchmarks.timing import Row, distance, in_turns, seconds
from sea_lens import Editor
from sea_lens.editing.affine import AffineEdit
from sea_lens.models.bridge import FwdHook
from sea_lens.models.sites import Site


def apply_rows() -> Iterator[Row]:
    """One edit on one token, and on a batch of them."""
    edit = worlds.random_editor(4096, 1, 64)[0]
    assert isinstance(edit, AffineEdit)
    keep, remove = _dense(edit)
    for tokens in (1, 256):
        h = torch.randn(1, tokens, 4096, generator=torch.Generator().manual_seed(1))
        repeats = 100 if tokens == 1 else 15
        with torch.no_grad():
            apart = distance(edit(h), published.edit(h, keep, remove))
            times = in_turns(partial(published.edit, h, keep, remove), partial(edit, h), repeats)
        what = f"apply an edit, d=4096, ranks 64+64, {tokens} token{'s' * (tokens > 1)}"
        yield Row(what, *times, 10, f"{apart:.1e} apart", apart < 1e-5, (repeats, repeats))


def forward_rows() -> Iterator[Row]:
    """The whole model, every layer edited, against the same model unedited; equal to dense projections at every layer."""
    model = worlds.llama(1024, 8)
    editor = worlds.random_editor(1024, 8, 64)
    for batch, length in ((1, 1), (4, 64), (8, 256)):
        ids = torch.randint(2, 258, (batch, length), generator=torch.Generator().manual_seed(0))
        run = partial(_forward, model, ids)
        repeats = {1: 201, 64: 21, 256: 5}[length]
        with model.hooks(fwd_hooks=_dense_hooks(editor)):
            dense = run()
        with editor.attached(model):
            edited = run()
        apart = distance(edited, dense)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            # The hooks are set once for many passes, as in use, so that setting them is not part of a pass.
            times[0].append(seconds(run))
            with editor.attached(model):
                times[1].append(seconds(run))
        unedited, with_edits = map(median, times)
        what = f"forward, every layer edited, d=1024, 8 layers, ({batch}, {length})"
        yield Row(
            what,
            unedited,
            with_edits,
            1.05,
            f"{apart:.1e} from dense projections",
            apart < 1e-4,
            (repeats, repeats),
            inverted=True,
        )


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


def _dense(edit: AffineEdit) -> tuple[torch.Tensor, torch.Tensor]:
    """`P+` and `P-` with `P+ + P- = I + W diag(lam) W^T`: as dense as the published ones, whatever they are made of."""
    w, lam = edit.directions, edit.eigenvalues
    up, down = w[:, lam > 0], w[:, lam < 0]
    return (up * lam[lam > 0]) @ up.T, torch.eye(len(w)) + (down * lam[lam < 0]) @ down.T


def _dense_hooks(editor: Editor) -> list[FwdHook]:
    hooks: list[FwdHook] = []
    for layer in editor.layers:
        edit = editor[layer]
        assert isinstance(edit, AffineEdit)
        hooks.append((Site(layer).hook_name, partial(_dense_hook, _dense(edit))))
    return hooks


def _dense_hook(projections: tuple[torch.Tensor, torch.Tensor], tensor: torch.Tensor, hook: object) -> torch.Tensor:
    return published.edit(tensor, *projections)


@torch.no_grad()
def _forward(model: TransformerBridge, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids, use_cache=False)
    return logits
