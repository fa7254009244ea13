"""What an edit costs on any text: perplexity, and how far predictions move from the unedited model's.

One forward pass of each model per batch gives all numbers. Texts longer than the context are read in overlapping windows, and
every token is scored once.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.cache import Store, digest
from sea_lens.data.questions import Questions
from sea_lens.data.texts import read_texts
from sea_lens.editing.editor import Editor
from sea_lens.editing.sparing import parts_of
from sea_lens.editing.where import OfBatch
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.benchmark import register_benchmark
from sea_lens.evaluation.evaluation import Evaluation, Run, check_model, no_change, provenance
from sea_lens.evaluation.guard import changes_of, guarded
from sea_lens.evaluation.metrics import COST, SHARE, Columns, Metric, Scale, mean, metric_table
from sea_lens.evaluation.windows import Window, beginnings, text_windows
from sea_lens.models.bridge import FwdHook, Model
from sea_lens.models.distributed import shows
from sea_lens.models.distributions import kl, log_softmax, logits_at_once, positions_at_once
from sea_lens.models.hooks import logits_of, model_facts, states_at
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.tokens import PaddedTokens, join

NLL = mean("nll", "tokens", scale=COST)
PERPLEXITY = Metric("perplexity", lambda sums: (sums["nll"] / sums["tokens"]).exp(), "tokens", Scale(best=1.0, low=1.0))
BITS_PER_BYTE = Metric("bits_per_byte", lambda sums: sums["nll"] / math.log(2) / sums["bytes"], "tokens", COST)
KL = mean("kl", "tokens", scale=COST)
AGREEMENT = mean("top_agreement", "tokens", scale=SHARE)
METRICS = [NLL, PERPLEXITY, BITS_PER_BYTE, KL, AGREEMENT]
MEASURED = ("nll", "edited nll", "kl", "top_agreement")
"""What a batch keeps per window, summed over the tokens that it scores."""
TOKENS_AT_ONCE = 2**12
"""Tokens in one forward pass, where it has more than one window."""


@register_benchmark("perplexity", reads="texts")
def evaluate_perplexity(
    model: Model,
    texts: Sequence[str] | Questions | str | Path,
    editor: Editor | None = None,
    *,
    context_length: int | None = None,
    stride: int | None = None,
    control: int | Sequence[Editor] = 3,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measures perplexity on any text, and how far an edit moves predictions (KL): what it costs.

    Every text is read after the beginning-of-sequence token (the end token where there is none, as in lm-eval), so all of its
    tokens are scored. A text longer than `context_length` is read in windows (see `windows_of`). With `stride` equal to
    `context_length` they are those of lm-eval's `loglikelihood_rolling`; with a smaller one those of Hugging Face's guide to
    perplexity. Windows after a text's first do not begin with that token.

    - **nll**: mean negative log-likelihood per token, in nats.
    - **perplexity**: its exponential.
    - **bits_per_byte**: the same per byte, which does not depend on the tokenizer.
    - **kl**, with an editor: mean over tokens of KL(unedited || edited), in nats. 0 without the edit by definition.
    - **top_agreement**, with an editor: share of tokens at which both models predict the same next token. 1 by definition.

    Intervals are percentile bootstraps over whole texts. The last two metrics have no p-value: chance can move them in one
    direction only.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        texts: Texts, or a file of them: `.txt`, which is one text, a JSON list, or JSON lines (see `read_texts`). Questions
            are read as their right answers after their prompts.
        editor: The editor to compare the unedited model with. One that edits from a position on counts from the start of
            each window.
        context_length: Tokens per pass; None is the model's whole context.
        stride: New tokens in each window after a text's first; None is half of the context.
        control: How many norm-matched random editors to evaluate as well, or editors of your own; 0 for none.
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on the prompts and on neutral text.
        seed: Seed of the resamples and the controls.
        confidence: Confidence of the intervals.
        batch_size: Windows per forward pass; fewer where they have more than 4,096 tokens. It changes no result, apart from
            rounding.
        folder: A folder for finished batches. A killed run continues there.
        progress: Whether to show a progress bar.

    Returns:
        The evaluation. `n` counts tokens, and `per_row` has one row per text, with sums over its tokens.

    Raises:
        InputError: If there is no text, a text has no tokens, a number is out of range, the editor holds a position mask, or
            the model predicts NaN.
        FileFormatError: If a file cannot be read.
        ModelMismatchError: If the editor does not fit the model.

    Warns:
        SeaLensWarning: If there is only one text, so that there are no intervals, an editor that is not the identity changes
            nothing, or the model carries hooks.
        BrokenModelWarning: If the edit breaks the model.

    Example:
        >>> found = sl.evaluate_perplexity(model, sl.neutral_texts(model)[:5])
        >>> found.table.index.tolist()
        ['nll', 'perplexity', 'bits_per_byte']
    """
    check_arguments(evaluate_perplexity, locals())
    began = time.monotonic()
    run = Run(seed, confidence, batch_size, folder, progress, control, neutral_texts, damage)
    check_model(model, editor)
    source, texts = _texts(texts)
    length = model.cfg.n_ctx if context_length is None else context_length
    stride = max(1, length // 2) if stride is None else stride
    if not 1 <= stride <= length <= model.cfg.n_ctx:
        raise InputError(
            f"1 <= stride <= context_length <= {model.cfg.n_ctx}, the model's context, must hold; {stride} and {length} were "
            "given."
        )
    if editor is not None:
        editor.check(model)
        if isinstance(parts_of(editor.where)[0], OfBatch):
            raise InputError("This editor holds a position mask for one batch. Give the editor it was made from.")
    windows = text_windows(model, texts, length, stride)
    controls = run.controls_of(editor)
    measure = partial(_measured, model, texts, windows, run=run, cuts={"context_length": length, "stride": stride})
    sums = measure(editor)
    beside = [measure(one) for one in controls]
    if editor is not None and not editor.is_identity and torch.equal(sums[:, 0], sums[:, 1]) and not sums[:, 2].any():
        warnings.warn(no_change(f"prediction about these {len(texts)} texts"), SeaLensWarning, stacklevel=2)
    n_tokens = torch.zeros(len(texts), dtype=torch.float64)
    for window in windows:
        n_tokens[window.text] += len(window.ids) - window.first
    n_bytes = torch.tensor([len(text.encode()) for text in texts], dtype=torch.float64)
    columns: dict[str, object] = {
        "begins": [text[:60] for text in texts],
        "tokens": n_tokens.long().tolist(),
        "bytes": n_bytes.long().tolist(),
    }
    names = ("nll",) if editor is None else ("nll unedited", "nll edited", "kl", "top_agreement")
    columns |= {name: values.tolist() for name, values in zip(names, sums.T, strict=False)}
    counted = {"tokens": n_tokens, "bytes": n_bytes}
    plain, *edited = [
        _counted(found, counted, side) for found, side in [(sums, 0), *((one, 1) for one in (sums, *beside))]
    ]
    evaluation = Evaluation(
        benchmark="Perplexity",
        headline="perplexity",
        table=_table(plain, None if editor is None else edited[0], run),
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
                "windows": len(windows),
                "tokens": int(n_tokens.sum()),
                **run.facts,
            },
            seconds=time.monotonic() - began,
        ),
        scales={metric.name: metric.scale for metric in METRICS},
    )
    changes = changes_of(METRICS, plain, edited[1:])
    return guarded(evaluation, model, editor, controls, changes, run, prompts=beginnings(model, texts))


def _texts(given: Sequence[str] | Questions | str | Path) -> tuple[str, list[str]]:
    """Where texts come from, and the texts."""
    if isinstance(given, Questions):
        return given.source, [join(question.prompt, question.right[0]) for question in given]
    if isinstance(given, str | Path):
        return str(given), read_texts(given)
    texts = list(given)
    odd = next((text for text in texts if not isinstance(text, str)), None)
    if odd is not None:
        raise InputError(f"Texts are needed, and {odd!r:.60} is among them. Give a list of strings, or a file.")
    return "lists", texts


def _measured(
    model: Model,
    texts: Sequence[str],
    windows: Sequence[Window],
    editor: Editor | None,
    *,
    run: Run,
    cuts: dict[str, int],
) -> Float[Tensor, "texts measured"]:
    """Runs all windows, a batch at a time, and adds up what they measure."""
    rows, _ = how_to_run(model, editor, run.batch_size, longest=max(len(window.ids) for window in windows) - 1)
    batches: list[list[Window]] = [[]]
    for window in windows:  # the first window of a batch is its longest
        batch = batches[-1]
        size = (len(batch) + 1) * (len((batch or [window])[0].ids) - 1)
        if batch and (len(batch) == rows or size > TOKENS_AT_ONCE):
            batches.append([])
        batches[-1].append(window)
    store = None
    if run.folder is not None:
        made_by = {
            "texts": digest(list(texts)),
            "batches": [len(batch) for batch in batches],
            **cuts,
            **model_facts(model, editor),
        }
        store = Store.within(run.folder, "perplexity", made_by)
    sums = torch.zeros(len(texts), len(MEASURED), dtype=torch.float64)
    # Which batches are left to run, and so whether a hook fires, depends on what is kept: a check of the numbers says more.
    hooks = [] if editor is None else editor.fwd_hooks(model)
    with tqdm(total=len(windows), desc="perplexity", unit="window", disable=not shows(run.progress)) as bar:
        for number, batch in enumerate(batches):
            kept = store.read(number) if store is not None else None
            found = None if kept is None else kept["sums"]
            if found is None:
                found = _measure(model, batch, hooks)
                _check(found, batch)
                if store is not None:
                    store.write(number, {"sums": found})
            sums.index_add_(0, torch.tensor([window.text for window in batch]), found)
            bar.update(len(batch))
    return sums


@torch.no_grad()
def _measure(model: Model, batch: Sequence[Window], hooks: list[FwdHook]) -> Float[Tensor, "windows measured"]:
    """Runs the unedited model on a batch, and the edited one if there are hooks."""
    tokens = PaddedTokens.of(model, [window.ids[:-1] for window in batch])
    scored = [(row, at) for row, window in enumerate(batch) for at in range(window.first, len(window.ids))]
    owners = torch.tensor([row for row, _ in scored])
    said = torch.tensor([batch[row].ids[at] for row, at in scored])
    where = torch.zeros(tokens.ids.shape, dtype=torch.bool)
    where[owners, torch.tensor([at - 1 for _, at in scored])] = True
    states = states_at(model, tokens, where)
    edited = states_at(model, tokens, where, hooks) if hooks else states
    found = torch.zeros(len(batch), len(MEASURED), dtype=torch.float64)
    most = logits_at_once(model)
    parts = (torch.split(each, most) for each in (states, edited if hooks else states, said, owners))
    for before, after, ids, own in zip(*parts, strict=True):
        found.index_add_(0, own, _measured_here(model, before, after if hooks else None, ids))
    return found


def _measured_here(
    model: Model,
    states: Float[Tensor, "pos width"],
    edited: Float[Tensor, "pos width"] | None,
    said: Int[Tensor, " pos"],
) -> Float[Tensor, "pos measured"]:
    """A function of its own, so that the logits of these positions are gone before there are others."""
    plain = logits_of(model, states)
    other = plain if edited is None else logits_of(model, edited)
    parts = (torch.split(each, positions_at_once(plain.shape[1], plain.device)) for each in (plain, other, said))
    return torch.cat(
        [_compared(one, one if other is plain else two, ids) for one, two, ids in zip(*parts, strict=True)]
    )


def _compared(
    unedited: Float[Tensor, "pos d_vocab"], edited: Float[Tensor, "pos d_vocab"], said: Int[Tensor, " pos"]
) -> Float[Tensor, "pos measured"]:
    ids = said.to(unedited.device)[:, None]
    plain = log_softmax(unedited)
    other = plain if edited is unedited else log_softmax(edited)
    agree = (plain.argmax(-1) == other.argmax(-1)).to(plain)
    apart = torch.zeros_like(agree) if other is plain else kl(plain, other)
    columns = (-plain.gather(-1, ids)[:, 0], -other.gather(-1, ids)[:, 0], apart, agree)
    return torch.stack(columns, dim=1).double().cpu()


def _counted(sums: Float[Tensor, "texts measured"], counted: Columns, side: int) -> Columns:
    """The columns that metrics are computed from, of the unedited (0) or the edited model (1)."""
    divergence, agreement = (sums[:, 2], sums[:, 3]) if side else (torch.zeros_like(sums[:, 2]), counted["tokens"])
    return {**counted, "nll": sums[:, side], "kl": divergence, "top_agreement": agreement}


def _table(plain: Columns, edited: Columns | None, run: Run) -> pd.DataFrame:
    metrics = METRICS[:3] if edited is None else METRICS
    table = metric_table(metrics, plain, edited, seed=run.seed, confidence=run.confidence)
    if edited is not None:
        table.loc[[KL.name, AGREEMENT.name], "p_value"] = math.nan
        if "note" in table:  # which compares an interval with a p-value
            table.loc[[KL.name, AGREEMENT.name], "note"] = ""
    if len(plain["tokens"]) == 1:
        warnings.warn(
            "Intervals come from resampling texts, and one text has none. Cut it into several, such as its paragraphs.",
            SeaLensWarning,
            stacklevel=3,
        )
        table.loc[:, ["low", "high"]] = math.nan
        if edited is not None:
            table["p_value"] = math.nan
    return table


def _check(found: Float[Tensor, "windows measured"], batch: Sequence[Window]) -> None:
    bad = sorted({window.text for window, values in zip(batch, found, strict=True) if values.isnan().any()})
    if bad:
        raise InputError(
            f"The model predicts NaN on texts {bad[:10]}. Activations overflow: scale the editor down, or run the model in "
            "float32."
        )
