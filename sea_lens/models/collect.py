"""From demonstrations and a model to activations: one forward pass a batch, gathered inside the hooks, resumable."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm.auto import tqdm

from sea_lens.cache import Store
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.editing.editor import Editor
from sea_lens.models.activations import FORMAT, ROLES, Activations, BySite, Role, TokenChoice
from sea_lens.models.bridge import Model
from sea_lens.models.distributed import every_process, from_each, n_processes, rank, together
from sea_lens.models.streaming import ActivationStream


@torch.no_grad()
def collect_activations(
    model: Model,
    demonstrations: Demonstrations,
    layers: Iterable[int] | None = None,
    token: TokenChoice = "last",
    *,
    site: str = "resid_post",
    batch_size: int = 32,
    folder: str | Path | None = None,
    editor: Editor | None = None,
    share_prefix: bool = True,
    progress: bool = True,
) -> Activations:
    """Runs the model over every prompt with each of its three completions and keeps one vector a text and layer.

    One forward pass a batch serves all layers; the hooks gather the chosen token and nothing else is kept. The pass
    stops after the last layer asked for. What separates positives from negatives besides meaning is warned about, once.

    They take `3 n d_model` float32 numbers a layer. Where that is too much, `collect_statistics` keeps sums instead.

    Under `torchrun` or `accelerate launch`, with `torch.distributed` initialised, batches are split over the processes, and
    all of them get all activations: the same bits as from one process, since the batches are the same. (A `folder` must then
    be one that all processes see.)

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        demonstrations: With neutral completions (see `Demonstrations.with_neutral_answers`).
        layers: Layers to collect, counted from 0; all for None.
        token: `"last"`, the text's last token (the paper's choice); `"last_content"`, the last one that is not
            punctuation or a special token; `"mean"`, the mean over the answer's tokens; or an integer, an index
            into the answer's tokens (0 its first, -1 its last).
        site: TransformerLens's short hook name.
        batch_size: Texts in one forward pass.
        folder: Where to save finished batches. A collection that was killed goes on from there when called again; a
            finished one is read back.
        editor: Edits the model meanwhile. Where the editor acts at the site and layer collected, the edited value is kept.
        share_prefix: Whether to run a beginning that texts share once, and reuse its keys and values: a few-shot prompt once
            for all texts, and the rest of a prompt once for its three completions. To be turned off under hooks of your own
            that treat tokens by their place in a pass, or look at other tokens. The result differs by rounding.
        progress: Whether to show a progress bar.

    Returns:
        Activations in float32 on the CPU.

    Raises:
        InputError: If neutral completions are missing, a text does not fit the context, an answer is too short for an
            integer `token`, an activation is NaN or infinite, or the editor's positions are a mask or beyond every text.
        ModelMismatchError: If the model lacks a layer or the site, or the editor does not fit it.
        FileFormatError: If `folder` holds another collection.
    """
    stream = ActivationStream(
        model,
        demonstrations,
        layers,
        token,
        site=site,
        batch_size=batch_size,
        editor=editor,
        share_prefix=share_prefix,
    )
    stream.warn_of_confounds(stacklevel=3)  # past no_grad
    store = None
    if folder is not None:
        store = Store(folder, "collection", {"format": FORMAT, **stream.facts()})
        if every_process((store.path / "activations.safetensors").exists()):
            with together():
                if rank() == 0:
                    store.clear()  # a run killed before it could has left its batches
            return Activations.load(folder)

    def batch(number: int) -> torch.Tensor:
        """Read back or computed; of no rows past the end, where a round of the processes has more places than batches."""
        if number >= len(stream):
            return torch.empty(0, *stream.shape(0)[1:])
        found = store.read(number) if store is not None else None
        if found is None:
            found = {"batch": stream.gather(number)}
            if store is not None:
                store.write(number, found)
        return found["batch"]

    n, width = len(demonstrations), stream.width
    by_role = {role: {layer: torch.empty(n, width) for layer in stream.layers} for role in ROLES}
    silent = not progress or rank() > 0
    with tqdm(total=n, desc="activations", unit="demonstration", disable=silent) as bar:
        for first in range(0, len(stream), n_processes()):
            with together():
                own = batch(first + rank())
            for place, gathered in enumerate(from_each(own)):
                rows = stream.rows(first + place)
                for number, role in enumerate(ROLES):
                    for column, layer in enumerate(stream.layers):
                        by_role[role][layer][rows] = gathered[:, number, column]
                bar.update(len(rows))
    sides: dict[Role, BySite] = {
        role: BySite({site: by_role[role][site.layer] for site in stream.sites if site.layer is not None})
        for role in ROLES
    }
    activations = Activations(sides, token, stream.kind.model, demonstrations.fingerprint, editor=stream.kind.editor)
    if store is not None:
        with together():
            if rank() == 0:
                activations.save(store.path / "activations.safetensors")
                store.clear()
    return activations
