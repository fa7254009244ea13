"""What an edit costs on any text: perplexity, and how far predictions move from the unedited model's.

One forward pass of each model a batch gives all numbers. Texts longer than the model's context are read in windows that
overlap, and every token is scored once.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.cache import Store, digest
from sea_lens.data.records import read_texts
from sea_lens.editing.editor import Editor
from sea_lens.editing.where import OfBatch
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.evaluation import Evaluation, check_unhooked, provenance
from sea_lens.evaluation.metrics import COST, SHARE, Metric, Scale, mean, metric_table
from sea_lens.models.bridge import Model, tokenizer_of, weights_digest
from sea_lens.models.log_probs import kl, log_softmax
from sea_lens.models.tokens import PaddedTokens, token_ids

NLL = mean("nll", "tokens", scale=COST)
PERPLEXITY = Metric("perplexity", lambda sums: (sums["nll"] / sums["tokens"]).exp(), "tokens", Scale(best=1.0, low=1.0))
BITS_PER_BYTE = Metric("bits_per_byte", lambda sums: sums["nll"] / math.log(2) / sums["bytes"], "tokens", COST)
KL = mean("kl", "tokens", scale=COST)
AGREEMENT = mean("top_agreement", "tokens", scale=SHARE)
METRICS = [NLL, PERPLEXITY, BITS_PER_BYTE, KL, AGREEMENT]
MEASURED = ("nll", "edited nll", "kl", "top_agreement")
"""What a batch keeps of every window, summed over the tokens that it scores."""
POSITIONS_AT_ONCE = 256
"""Positions whose float64 distributions are in memory together: 0.25 GB for 128,000 tokens of vocabulary."""


@dataclass(frozen=True)
class Window:
    """Part of a text that is run in one pass.

    Attributes:
        text: Which text.
        ids: Its tokens, the last of which is scored only.
        first: Index in `ids` of the first token that is scored.
    """

    text: int
    ids: list[int]
    first: int


def windows_of(text: int, ids: Sequence[int], context_length: int, stride: int) -> list[Window]:
    """The passes that score every token of a text but its first, each once.

    The first pass scores up to `context_length` tokens. Each further one ends `stride` tokens later (the last where the text
    ends), scores the tokens that the one before it did not, and has as many tokens before these as fit: so every token is
    predicted from all that stands before it or from `context_length - stride + 1` tokens at least.

    Args:
        text: Its number.
        ids: Its tokens, two at least; the first is not scored.
        context_length: Tokens that the model is given in one pass.
        stride: New tokens in each pass.
    """
    found: list[Window] = []
    scored = 1
    while scored < len(ids):
        stop = min(len(ids), context_length + 1 if not found else scored + stride)
        start = max(0, stop - 1 - context_length)
        found.append(Window(text, list(ids[start:stop]), scored - start))
        scored = stop
    return found


def evaluate_perplexity(
    model: Model,
    texts: Sequence[str] | str | Path,
    editor: Editor | None = None,
    *,
    context_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    folder: str | Path | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool = True,
) -> Evaluation:
    """Perplexity on any texts, and with an editor how far the edited model's predictions are from the unedited ones.

    Every text is read after the beginning-of-sequence token (the end token where there is none, as in lm-eval), so all of its
    tokens are scored. One longer than `context_length` is read in windows, as `windows_of` says: with `stride` equal to
    `context_length` these are those of lm-eval's `loglikelihood_rolling`, with a smaller one those of Hugging Face's guide
    to perplexity, whose tokens have more before them. Windows after a text's first do not begin with that token.

    Metrics: `nll`, mean negative log-likelihood of a token in nats; `perplexity`, its exponential; `bits_per_byte`, which
    does not depend on how text is cut into tokens; with an editor also `kl`, mean over tokens of KL(unedited || edited) in
    nats, 0 without the edit by definition, and `top_agreement`, share of tokens at which both models find the same next
    token likeliest, 1 by definition. Intervals come from resampling whole texts. The last two have no p-value, as chance
    cannot lower the one or raise the other.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        texts: Texts, or a file of them: `.txt`, which is one text, a JSON list, or JSON lines (see `read_texts`).
        editor: To compare the unedited model with; None for the unedited model alone. One that edits from a position on
            counts from the start of each window.
        context_length: Tokens in one pass; the model's whole context if left out.
        stride: New tokens in each window after a text's first; half of the context if left out.
        batch_size: Windows in one forward pass. It does not change the result, but for rounding.
        folder: Where to keep finished batches. A run that was killed goes on there.
        seed: Of resamples.
        confidence: Of the intervals.
        progress: Whether to show a progress bar.

    Returns:
        `n` in the table counts tokens; `per_row` has one row a text, with sums over its tokens.

    Raises:
        InputError: If there is no text, one has no tokens, a number is out of range, the editor holds a position mask, or the
            model predicts NaN.
        FileFormatError: If a file cannot be read.
        ModelMismatchError: If the editor does not fit the model.

    Warns:
        SeaLensWarning: If there is only one text, of which no interval can be had.
    """
    began = time.monotonic()
    source = str(texts) if isinstance(texts, str | Path) else "lists"
    texts = read_texts(texts) if isinstance(texts, str | Path) else list(texts)
    length = model.cfg.n_ctx if context_length is None else context_length
    stride = max(1, length // 2) if stride is None else stride
    if batch_size < 1 or not 1 <= stride <= length <= model.cfg.n_ctx or not 0 < confidence < 1:
        raise InputError(
            f"batch_size must be at least 1, confidence inside (0, 1), and 1 <= stride <= context_length <= "
            f"{model.cfg.n_ctx}, the model's context; {batch_size}, {confidence}, {stride} and {length} were given."
        )
    check_unhooked(model, folder)
    if editor is not None:
        editor.check(model)
        if isinstance(editor.where, OfBatch):
            raise InputError("This editor holds a position mask of one batch. Give the one it was made from.")
        if not editor.token_local:
            batch_size = 1  # what it does to a token depends on the pass, padding included
    windows = _windows(model, texts, length, stride)
    batches = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
    store = None
    if folder is not None:
        facts = {
            "weights": weights_digest(model),
            "texts": digest(texts),
            "editor": None if editor is None else editor.fingerprint,
            "context_length": length,
            "stride": stride,
            "batch_size": batch_size,
        }
        store = Store.within(folder, "perplexity", facts)
    sums = torch.zeros(len(texts), len(MEASURED), dtype=torch.float64)
    attached = False
    with tqdm(total=len(windows), desc="perplexity", unit="window", disable=not progress) as bar:
        for number, batch in enumerate(batches):
            kept = store.read(number) if store is not None else None
            if kept is None:
                kept = {"sums": _measure(model, batch, editor, checked=attached)}
                attached = True
                _check(kept["sums"], batch)
                if store is not None:
                    store.write(number, kept)
            sums.index_add_(0, torch.tensor([window.text for window in batch]), kept["sums"])
            bar.update(len(batch))
    n_tokens = torch.zeros(len(texts), dtype=torch.float64)
    for window in windows:
        n_tokens[window.text] += len(window.ids) - window.first
    n_bytes = torch.tensor([len(text.encode()) for text in texts], dtype=torch.float64)
    table = _table(sums, n_tokens, n_bytes, editor is not None, seed, confidence)
    columns: dict[str, object] = {
        "begins": [text[:60] for text in texts],
        "tokens": n_tokens.long().tolist(),
        "bytes": n_bytes.long().tolist(),
    }
    names = ("nll",) if editor is None else ("nll unedited", "nll edited", "kl", "top_agreement")
    columns |= {name: values.tolist() for name, values in zip(names, sums.T, strict=False)}
    return Evaluation(
        benchmark="Perplexity",
        headline="perplexity",
        table=table,
        by_category=pd.DataFrame(),
        per_row=pd.DataFrame(columns).rename_axis("text"),
        per_answer=pd.DataFrame(),
        provenance=provenance(
            model,
            editor,
            source=source,
            fingerprint=digest(texts),
            n=len(texts),
            prompt="the text itself, after the beginning-of-sequence token",
            options={
                "context_length": length,
                "stride": stride,
                "batch_size": batch_size,
                "windows": len(windows),
                "tokens": int(n_tokens.sum()),
                "seed": seed,
                "confidence": confidence,
            },
            seconds=time.monotonic() - began,
        ),
        scales={metric.name: metric.scale for metric in METRICS},
    )


def _windows(model: Model, texts: Sequence[str], context_length: int, stride: int) -> list[Window]:
    """All windows, the longest first, so that those of like length are run together."""
    if not texts:
        raise InputError("There are no texts. Perplexity needs one at least, and its interval several.")
    tokenizer = tokenizer_of(model)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    windows = []
    for number, text in enumerate(texts):
        ids = token_ids(model, text)
        if begin is not None and ids[:1] != [begin]:
            ids = [begin, *ids]
        if len(ids) < 2:
            raise InputError(f"Text {number}, {text!r}, has no token that another one comes before. Drop it.")
        windows += windows_of(number, ids, context_length, stride)
    return sorted(windows, key=lambda window: -len(window.ids))


@torch.no_grad()
def _measure(
    model: Model, batch: Sequence[Window], editor: Editor | None, *, checked: bool
) -> Float[Tensor, "windows measured"]:
    """Runs the unedited and the edited model on a batch; `checked` says that the editor's hooks are known to fire."""
    tokens = PaddedTokens.of(model, [window.ids[:-1] for window in batch])
    options = tokens.forward_options()
    plain = model(tokens.ids, **options)
    edited = plain
    if editor is not None:
        # Short windows may end before the first position that is edited; the first batch has the longest.
        with model.hooks(fwd_hooks=editor.fwd_hooks()) if checked else editor.attached(model):
            edited = model(tokens.ids, **options)
    found = torch.zeros(len(batch), len(MEASURED), dtype=torch.float64)
    for row, window in enumerate(batch):
        for start in range(window.first, len(window.ids), POSITIONS_AT_ONCE):
            stop = min(start + POSITIONS_AT_ONCE, len(window.ids))
            there = slice(start - 1, stop - 1)
            found[row] += _compared(plain[row, there], edited[row, there], window.ids[start:stop])
    return found


def _compared(
    unedited: Float[Tensor, "pos d_vocab"], edited: Float[Tensor, "pos d_vocab"], ids: Sequence[int]
) -> Float[Tensor, " measured"]:
    said = torch.tensor(ids, device=unedited.device)[:, None]
    plain = log_softmax(unedited)
    other = plain if edited is unedited else log_softmax(edited)
    agree = (plain.argmax(-1) == other.argmax(-1)).to(plain)
    columns = (-plain.gather(-1, said)[:, 0], -other.gather(-1, said)[:, 0], kl(plain, other), agree)
    return torch.stack([column.sum() for column in columns]).double().cpu()


def _table(
    sums: Float[Tensor, "texts measured"],
    n_tokens: Float[Tensor, " texts"],
    n_bytes: Float[Tensor, " texts"],
    is_edited: bool,
    seed: int,
    confidence: float,
) -> pd.DataFrame:
    nll, edited_nll, divergence, agreement = sums.unbind(1)
    counted = {"tokens": n_tokens, "bytes": n_bytes}
    plain = counted | {"nll": nll, "kl": torch.zeros_like(divergence), "top_agreement": n_tokens}
    other = counted | {"nll": edited_nll, "kl": divergence, "top_agreement": agreement}
    metrics = METRICS if is_edited else METRICS[:3]
    table = metric_table(metrics, plain, other if is_edited else None, seed=seed, confidence=confidence)
    if is_edited:
        table.loc[[KL.name, AGREEMENT.name], "p_value"] = math.nan
    if len(n_tokens) == 1:
        warnings.warn(
            "Intervals come from resampling texts, and there is one text only: it has none. Cut it into several, such as "
            "its paragraphs.",
            SeaLensWarning,
            stacklevel=3,
        )
        table.loc[:, ["low", "high"]] = math.nan
        if is_edited:
            table["p_value"] = math.nan
    return table


def _check(found: Float[Tensor, "windows measured"], batch: Sequence[Window]) -> None:
    bad = sorted({window.text for window, values in zip(batch, found, strict=True) if values.isnan().any()})
    if bad:
        raise InputError(
            f"The model predicts NaN on texts {bad[:10]}. Activations overflow: scale the editor down, or run the model in "
            "float32."
        )
