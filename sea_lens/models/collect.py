"""From demonstrations and a model to activations: batch by batch, any sites in one pass, resumable, distributed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.cache import Store
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.models.activations import FORMAT, Activations, BySite, TokenChoice
from sea_lens.models.bridge import EditsModels, Model, check_is_model
from sea_lens.models.distributed import every_process, from_each, n_processes, rank, shows, together
from sea_lens.models.sites import Names, Sites
from sea_lens.models.stream import ActivationStream


@torch.no_grad()
def collect_activations(
    model: Model,
    demonstrations: Demonstrations,
    layers: Sites = None,
    token: TokenChoice = "last",
    *,
    site: Names = "resid_post",
    batch_size: int = 32,
    folder: str | Path | None = None,
    editor: EditsModels | None = None,
    share_prefix: bool = True,
    progress: bool = True,
) -> Activations:
    """Runs the model over every prompt with each of its completions and keeps one vector per text and site.

    One forward pass serves all sites and stops after the last layer asked for. What separates positives from negatives
    besides meaning is warned about, once. Demonstrations without neutral completions give the other two sides. Activations
    take `n width` float32 numbers per site and side; where that is too much, `collect_statistics` keeps sums.

    Under `torchrun` or `accelerate launch`, with `torch.distributed` initialised, batches are split over the processes, and
    all of them get all activations, the same bits as from one process. (A `folder` must be one that all of them see.)

    Example:
        >>> found = sl.collect_activations(model, demonstrations, layers=[-1], site=["resid_post", "attn.hook_z"])
        >>> found.positive["blocks.3.attn.hook_z"].shape
        torch.Size([120, 128])

    Args:
        model: A TransformerBridge with a tokenizer.
        demonstrations: With or without neutral completions (see `Demonstrations.with_neutral_answers`).
        layers: Layers to collect, negative ones from the end, or sites by name, such as `"blocks.5.hook_resid_post"`; all
            layers for None.
        token: `"last"`, the text's last token (the paper's choice); `"last_content"`, the last one that is not
            punctuation or a special token; `"mean"`, the mean over the answer's tokens; or an integer, an index
            into the answer's tokens (0 its first, -1 its last).
        site: TransformerLens's name of the hook point in a layer, or several. Attention heads lie side by side.
        batch_size: Rows in one forward pass.
        folder: Where to save finished batches. A collection that was killed goes on from there when called again; a
            finished one is read back.
        editor: Edits the model meanwhile. Where the editor acts at a site that is collected, the edited value is kept.
        share_prefix: Whether a few-shot prompt is run once for all texts, and the rest of a prompt once for its completions.
            Turn it off under hooks of your own that treat tokens by their place in a pass, or look at other tokens.
        progress: Whether to show a progress bar.

    Returns:
        Activations in float32 on the CPU.

    Raises:
        InputError: If only some demonstrations have a neutral completion, a text does not fit the context, an answer is too
            short for an integer `token`, an activation is NaN or infinite, or a model with hooks of your own is to be kept in
            a folder.
        ModelMismatchError: If the model lacks a layer or a site, or the editor does not fit it.
        HookNeverFiredError: If the editor's positions lie beyond every text.
        FileFormatError: If `folder` holds another collection.
    """
    check_arguments(collect_activations, locals())
    check_is_model(model)
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
    n, ran = len(demonstrations), list[int]()

    def batch(number: int) -> Tensor:
        """Read back or computed; of no rows past the end, where a round of the processes has more places than batches."""
        if number >= len(stream):
            return torch.empty(0, len(stream.roles), sum(stream.kind.widths))
        found = store.read(number) if store is not None else None
        if found is None:
            found = {"batch": stream.gather(number)}
            ran.append(number)
            if store is not None:
                store.write(number, found)
        return found["batch"]

    of_all = [{role: torch.empty(n, width) for role in stream.roles} for width in stream.kind.widths]  # by site
    with tqdm(total=n, desc="activations", unit="demonstration", disable=not shows(progress)) as bar:
        for first in range(0, len(stream), n_processes()):
            with together():
                own = batch(first + rank())
            for place, gathered in enumerate(from_each(own)):
                rows = stream.rows(first + place)
                for site_of_all, part in zip(of_all, torch.split(gathered, list(stream.kind.widths), -1), strict=True):
                    for number, role in enumerate(stream.roles):
                        site_of_all[role][rows] = part[:, number]
                bar.update(len(rows))
    if len(ran) == len(stream):
        stream.check_fired()
    sides = {
        role: BySite({site: own[role] for site, own in zip(stream.sites, of_all, strict=True)}) for role in stream.roles
    }
    activations = stream.made(sides, demonstrations.fingerprint)
    if store is not None:
        with together():
            if rank() == 0:
                activations.save(store.path / "activations.safetensors")
                store.clear()
    return activations
