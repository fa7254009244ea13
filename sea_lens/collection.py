"""From demonstrations and a model to activations: one forward pass a batch, gathered inside the hooks, resumable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.activations import FORMAT, ROLES, Activations, TokenChoice
from sea_lens.demonstrations import Demonstrations
from sea_lens.editor import Editor
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models import (
    Model,
    ModelDescription,
    PaddedTokens,
    TokenizedAnswer,
    check_context_length,
    check_layers,
    hook_name,
    tokenizer_of,
    weights_fingerprint,
)
from sea_lens.shards import Shards


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
    progress: bool = True,
) -> Activations:
    """Runs the model over every prompt with each of its three completions and keeps one vector a text and layer.

    One forward pass a batch serves all layers; the hooks gather the chosen token and nothing else is kept. The pass
    stops after the last layer asked for. What separates positives from negatives besides meaning is warned about, once.

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
        progress: Whether to show a progress bar.

    Returns:
        Activations in float32 on the CPU.

    Raises:
        InputError: If neutral completions are missing, a text does not fit the context, an answer is too short for an
            integer `token`, an activation is NaN or infinite, or the editor's positions are a mask or beyond every text.
        ModelMismatchError: If the model lacks a layer or the site, or the editor does not fit it.
        FileFormatError: If `folder` holds another collection.
    """
    chosen_layers = check_layers(layers, model.cfg.n_layers)
    names = {layer: hook_name(model, site, layer) for layer in chosen_layers}
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
    texts, labels = _texts(model, demonstrations)
    spans = _token_spans(model, texts, labels, token)
    if editor is not None:
        editor.check(model)
        _check_reach(editor, chosen_layers, max(len(text.ids) for text in texts))
    for finding in demonstrations.check(model).findings:
        warnings.warn(f"{demonstrations.source}: {finding}", SeaLensWarning, stacklevel=3)  # past no_grad

    description = ModelDescription.of(model)
    # Longest first: a batch that does not fit in memory fails at once, and padding is least.
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index].ids))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shards = None
    if folder is not None:
        manifest = {
            "format": FORMAT,
            "demonstrations": demonstrations.fingerprint,
            "model": asdict(description),
            "weights": weights_fingerprint(model),
            "layers": chosen_layers,
            "site": site,
            "token": token,
            "batch_size": batch_size,
            "editor": None if editor is None else editor.fingerprint,
        }
        shape = (len(chosen_layers), model.cfg.d_model)
        shards = Shards(Path(folder), "collection", manifest, [(len(batch), *shape) for batch in batches])
        if (Path(folder) / "activations.safetensors").exists():
            return Activations.load(folder)

    n = len(demonstrations)
    by_role = {role: {layer: torch.empty(n, model.cfg.d_model) for layer in chosen_layers} for role in ROLES}
    with tqdm(total=len(texts), desc="activations", unit="text", disable=not progress) as bar:
        for number, batch in enumerate(batches):
            gathered = shards.read(number) if shards is not None else None
            if gathered is None:
                gathered = _gather(
                    model, [texts[index].ids for index in batch], [spans[index] for index in batch], names, editor
                )
                _check_finite(gathered, [labels[index] for index in batch], chosen_layers)
                if shards is not None:
                    shards.write(number, gathered)
            rows = torch.tensor(batch)
            for number_of_role, role in enumerate(ROLES):
                theirs = rows // n == number_of_role
                for column, layer in enumerate(chosen_layers):
                    by_role[role][layer][rows[theirs] % n] = gathered[theirs, column]
            bar.update(len(batch))
    activations = Activations(
        by_role["neutral"],
        by_role["positive"],
        by_role["negative"],
        site=site,
        token=token,
        model=description,
        demonstrations=demonstrations.fingerprint,
        editor=None if editor is None else editor.fingerprint,
    )
    if shards is not None:
        activations.save(shards.folder / "activations.safetensors")
        shards.clear()
    return activations


def _texts(model: Model, demonstrations: Demonstrations) -> tuple[list[TokenizedAnswer], list[str]]:
    """All texts, role after role, and what to call each in a message."""
    missing = [index for index, row in enumerate(demonstrations) if row.neutral is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(demonstrations)} demonstrations have no neutral completion (row {missing[0]}). "
            "Call demonstrations.with_neutral_answers(model): the method compares both answers with the model's own."
        )
    texts, labels = [], []
    for role in ROLES:
        for index, row in enumerate(demonstrations):
            texts.append(TokenizedAnswer.of(model, row.prompt, getattr(row, role)))
            labels.append(f"Demonstration {index} ({role})")
    check_context_length(model, [len(text.ids) for text in texts], labels)
    return texts, labels


def _check_reach(editor: Editor, layers: Sequence[int], longest: int) -> None:
    """Refuses positions that name other tokens, or none, in these texts; warns if nothing collected can be edited."""
    if isinstance(editor.positions, Tensor):
        raise InputError(
            "This editor holds a position mask of one batch, and activations are collected in batches of our own making. "
            "Give the first position to edit, editor.at_positions(1) for example, or the editor it was made from."
        )
    if editor.positions is not None and editor.positions >= longest:
        raise InputError(
            f"This editor edits from position {editor.positions} on, and the longest text has {longest} tokens, so nothing "
            "would be edited. Choose an earlier position."
        )
    if editor.layers[0] > layers[-1]:
        warnings.warn(
            f"The editor's first layer is {editor.layers[0]} and the last one collected is {layers[-1]}, which the edit does "
            "not reach: these are the activations of the unedited model. Collect later layers.",
            SeaLensWarning,
            stacklevel=4,
        )


def _token_spans(
    model: Model, texts: Sequence[TokenizedAnswer], labels: Sequence[str], token: TokenChoice
) -> list[tuple[int, int]]:
    """The span of positions `[start, stop)` that stands for each text."""
    if not isinstance(token, int) and token not in ("last", "last_content", "mean"):
        raise InputError(f'token must be "last", "last_content", "mean" or an integer, and {token!r} was given.')
    is_content = _ContentTest(model) if token == "last_content" else None
    spans, contentless = [], []
    for text, label in zip(texts, labels, strict=True):
        length, answer = len(text.ids), range(text.answer_start, len(text.ids))
        position = length - 1
        if is_content is not None:
            found = next((p for p in reversed(answer) if is_content(text.ids[p])), None)
            if found is None:
                contentless.append(label)
            else:
                position = found
        elif isinstance(token, int):
            if not -len(answer) <= token < len(answer):
                raise InputError(
                    f"{label} has an answer of {len(answer)} tokens, so there is no token {token}. Use "
                    'token="last", or drop such rows.'
                )
            position = answer[token]
        spans.append((answer.start, length) if token == "mean" and len(answer) else (position, position + 1))
    if contentless:
        warnings.warn(
            f"{len(contentless)} answers hold no content token (first: {contentless[0]}); their last token is used.",
            SeaLensWarning,
            stacklevel=4,
        )
    return spans


class _ContentTest:
    """Whether a token is more than punctuation, white space or a special token; decoded once each."""

    def __init__(self, model: Model) -> None:
        self.tokenizer = tokenizer_of(model)
        self.special = set(self.tokenizer.all_special_ids)
        self.known: dict[int, bool] = {}

    def __call__(self, token_id: int) -> bool:
        if token_id not in self.known:
            letters = any(character.isalnum() for character in self.tokenizer.decode([token_id]))
            self.known[token_id] = letters and token_id not in self.special
        return self.known[token_id]


def _gather(
    model: Model,
    rows: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]],
    names: Mapping[int, str],
    editor: Editor | None = None,
) -> Float[Tensor, "batch n_layers d_model"]:
    """One forward pass: the mean activation over each row's span, at every named hook, in float32 on the CPU."""
    tokens = PaddedTokens.of(model, rows)
    widest = max(stop - start for start, stop in spans)
    starts = torch.tensor([start for start, _ in spans])[:, None]
    counts = torch.tensor([stop - start for start, stop in spans])[:, None]
    steps = torch.arange(widest)[None, :]
    inside = steps < counts
    positions: Int[Tensor, "batch widest"] = torch.where(inside, starts + steps, starts)
    gathered: dict[int, Tensor] = {}

    def gather_at(layer: int) -> Callable[..., None]:
        def hook(tensor: Tensor, hook: object) -> None:
            where = positions.to(tensor.device)
            picked = tensor[torch.arange(len(rows), device=tensor.device)[:, None], where].float()
            weights = (inside / counts).to(picked)
            gathered[layer] = (picked * weights[..., None]).sum(1).cpu()

        return hook

    # The editor's hooks go first, for hooks run in this order; they are taken anew since each batch starts new texts.
    edits = [] if editor is None else editor.fwd_hooks()
    with model.hooks(fwd_hooks=[*edits, *((name, gather_at(layer)) for layer, name in names.items())]):
        model(tokens.ids, stop_at_layer=max(names) + 1, **tokens.forward_options())
    absent = [name for layer, name in names.items() if layer not in gathered]
    if absent:
        raise ModelMismatchError(
            f"The forward pass reached no activation at {absent}. Does this model run those blocks?"
        )
    return torch.stack([gathered[layer] for layer in names], dim=1)


def _check_finite(
    gathered: Float[Tensor, "batch n_layers d_model"], labels: Sequence[str], layers: Sequence[int]
) -> None:
    """Stops at the first batch that holds NaN or infinity, before it is saved."""
    bad = ~gathered.isfinite().all(-1)
    if bad.any():
        rows = [label for label, row in zip(labels, bad.any(1).tolist(), strict=True) if row]
        where = [layer for layer, column in zip(layers, bad.any(0).tolist(), strict=True) if column]
        raise InputError(
            f"NaN or infinity in the activations of layers {where}, in {len(rows)} texts of this batch: "
            f"{', '.join(rows[:5])}. Look at those demonstrations, or run the model in float32 or bfloat16."
        )
