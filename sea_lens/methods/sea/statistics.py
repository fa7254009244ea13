"""From demonstrations and a model to what SEA is fitted from, at constant memory, resumable, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.cache import Store
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.editing.editor import Editor
from sea_lens.errors import FileFormatError, InputError
from sea_lens.methods.sea.feature_space import FeatureMap
from sea_lens.methods.sea.fitter_files import FORMAT, SAMPLE, STATISTICS, features_as_json
from sea_lens.methods.sea.sea import SEA
from sea_lens.methods.sea.streaming import SEAFitter
from sea_lens.models.activations import TokenChoice
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.distributed import every_process, n_processes, rank, share_of, shows, together
from sea_lens.models.stream import ActivationStream


@torch.no_grad()
def collect_statistics(
    model: Model,
    demonstrations: Demonstrations,
    layers: Iterable[int] | None = None,
    token: TokenChoice = "last",
    *,
    site: str = "resid_post",
    batch_size: int = 32,
    folder: str | Path | None = None,
    save_every: int = 32,
    editor: Editor | None = None,
    share_prefix: bool = True,
    feature_map: FeatureMap | None = None,
    feature_unit: float | Literal["median"] = "median",
    progress: bool = True,
) -> SEAFitter:
    """Runs the model as `collect_activations` does, and keeps SEA's sums instead of activations: memory is flat in n.

    Each site takes `2 width^2` float64 numbers (see `SEAFitter`, also for when that is less than the activations). Edits are
    measured on 256 demonstrations, a choice that depends on nothing but their number.

    Under `torchrun` or `accelerate launch`, with `torch.distributed` initialised, batches are split over the processes
    (`models.distributed.share_of`) and their fitters merged in the order of ranks. Every process gets the same bits, those of
    merging the shares in one process. One process that sees all batches in turn adds up in another order, and agrees to
    rounding: to 1e-12 of the largest entry. (A `folder` must be one that all processes see.)

    Example:
        >>> sums = sl.collect_statistics(model, demonstrations)
        >>> sums.fit(sl.SEA(0.9, center=True)).layers
        [0, 1, 2, 3]

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        demonstrations: With neutral completions (see `Demonstrations.with_neutral_answers`).
        layers: As for `collect_activations`.
        token: As for `collect_activations`.
        site: As for `collect_activations`.
        batch_size: Texts in one forward pass, and demonstrations in a batch.
        folder: Where to save the sums, now and then and at the end. A collection that was killed goes on from there when
            called again, and comes to the same bits as one that was not; a finished one is read back.
        save_every: Batches between two saves. Each save writes all sums anew.
        editor: As for `collect_activations`.
        share_prefix: As for `collect_activations`.
        feature_map: As for `SEAFitter`.
        feature_unit: As for `SEAFitter`.
        progress: Whether to show a progress bar.

    Returns:
        A fitter that has seen all demonstrations.

    Raises:
        InputError: As `collect_activations` and `SEAFitter` do.
        ModelMismatchError: If the model lacks a layer or the site, or the editor does not fit it.
        FileFormatError: If `folder` holds another collection, or one that another number of processes began.
    """
    check_arguments(collect_statistics, locals())
    check_is_model(model)
    fitter = SEAFitter(feature_map=feature_map, feature_unit=feature_unit)
    missing = sum(row.neutral is None for row in demonstrations)
    if missing:
        raise InputError(
            f"SEA needs neutral answers, and {missing} of {len(demonstrations)} demonstrations have none. Call "
            "demonstrations.with_neutral_answers(model) first."
        )
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
    store = share = None
    if folder is not None:
        features = features_as_json(SEA(feature_map=feature_map, feature_unit=feature_unit))
        facts = {"format": FORMAT, **stream.facts(), **features}
        store = Store(folder, "statistics", facts)
        if every_process((store.path / STATISTICS).exists()):
            with together():
                if rank() == 0:
                    store.clear()  # a run killed before it could has left its share
            return SEAFitter.load(folder)
        share = _share_file(store.path)
        with suppress(FileFormatError):  # missing or damaged, and so begun anew
            fitter = SEAFitter.load(share)
    fitter.begin(stream.kind)  # where there are fewer batches than processes, some see none
    own = share_of(range(len(stream)))
    n = len(demonstrations)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:SAMPLE]
    silent = not shows(progress)
    total = sum(len(stream.rows(number)) for number in own)
    with together(), tqdm(total=total, desc="statistics", unit="demonstration", disable=silent) as bar:
        bar.update(fitter.n)
        for done in range(-(-fitter.n // batch_size), len(own)):  # every batch is full but the very last
            fitter.update(stream[own[done]], measured=torch.isin(stream.rows(own[done]), chosen))
            bar.update(len(stream.rows(own[done])))
            if share is not None and (done + 1) % save_every == 0:
                fitter.save(share)
        if share is not None and n_processes() > 1:
            fitter.save(share)  # others may take longer
    fitter = fitter.over_processes()
    fitter.demonstrations = demonstrations.fingerprint
    if store is not None:
        with together():
            if rank() == 0:
                fitter.save(store.path / STATISTICS)
                store.clear()
    return fitter


def _share_file(folder: Path) -> Path:
    """Where this process keeps what it has seen so far.

    Raises:
        FileFormatError: If another number of processes began the work: they split it otherwise.
    """
    begun_by = {path.stem.rpartition("-")[2] for path in folder.glob("statistics-share-*-of-*.safetensors")}
    if begun_by - {str(n_processes())}:
        raise FileFormatError(
            f"{folder} holds statistics begun by {', '.join(sorted(begun_by))} processes, and this is a run of "
            f"{n_processes()}. Go on with as many as before, or delete the folder."
        )
    return folder / f"statistics-share-{rank()}-of-{n_processes()}.safetensors"
