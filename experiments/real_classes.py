"""Centered SEA with one mean for every token, and with a mean per class of positions: the prompt's tokens, the answer's.

SEA's neutral mean is of answers. A prompt's tokens lie around another mean, and an edit around the wrong one moves all of
them alike. So here two editors of the same projections act together, each around the mean of the tokens that it edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import sea_lens as sl
from experiments.real_landscape import Landscape
from experiments.real_setup import Cells, Gaps, Setup, changes, quietly
from sea_lens.errors import HookNeverFiredError
from sea_lens.models.answers import margins_of
from sea_lens.models.log_probs import score_answers

FACTOR = "mean to center by"
FAR = 5.0
"""Times the median norm from which a token counts as massive, and is in no mean."""


@torch.no_grad()
def prompt_means(found: Landscape, layers: Sequence[int]) -> dict[int, Float[Tensor, " d_model"]]:
    """By layer, the mean over the tokens of the demonstrations' prompts, without massive ones."""
    model, names = found.setup.model, {f"blocks.{layer}.hook_resid_post": layer for layer in layers}
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for row in found.setup.demonstrations:
        tokens = model.to_tokens(row.prompt)
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in names)
        for name, layer in names.items():
            states = cache[name][0].double().cpu()
            norms = states.norm(dim=1)
            rows[layer].append(states[norms <= FAR * norms.median()])
    return {layer: torch.cat(each).mean(0) for layer, each in rows.items()}


def around(editor: sl.Editor, means: dict[int, Float[Tensor, " d_model"]]) -> sl.Editor:
    """The editor with other means: what goes with its center in its shift goes with the new one."""
    edits = {}
    for site in editor.sites:
        edit, mean = editor[site], means[int(site.layer or 0)]
        assert isinstance(edit, sl.AffineEdit)
        edits[site] = replace(edit, **recentered(edit, mean.to(edit.left.dtype)))
    return replace(editor, edits=edits)


def recentered(edit: sl.AffineEdit, mean: Float[Tensor, " d_model"]) -> dict[str, Any]:
    """The fields that hold the mean: `x + s ((keep - 1)(x - mean) + (x - mean) right left^T)`."""
    shift = (1 - edit.keep) * mean if edit.keep != 1 else None
    return {"center": mean, "shift": shift}


def gaps_of_both(found: Landscape, prompt: sl.Editor, answer: sl.Editor) -> Gaps:
    """The gaps with one editor on prompts and another on answers."""
    setup, on_answer = found.setup, answer.at_positions("generated")
    with prompt.at_positions("prompt").attached(setup.model):
        try:
            scores = score_answers(setup.model, setup.held_out, on_answer, batch_size=16, progress=False)
        except HookNeverFiredError:  # answers of one token are predicted from the prompt, and never run
            scores = score_answers(setup.model, setup.held_out, batch_size=16, progress=False)
    return margins_of(scores, per_token=True, best_only=False)


def run_classes(cells: Cells, setup: Setup, where: str, facts: Mapping[str, Any], times: float = 1.0) -> None:
    """The cell of a model and a behavior.

    Args:
        cells: Where it is kept.
        setup: The model and its data; `demonstrations` are all that may be fitted on.
        where: Beginning of the cell's name.
        facts: What else decides the result.
        times: How many times as strong the base is as on the real models.
    """
    own = {**facts, "method": "sea", "factor": FACTOR}
    with quietly():
        rows = cells.get(
            f"{where}/landscape/sea/{FACTOR}", own, lambda: measure_classes(Landscape(setup, "sea", (), times=times))
        )
    told = "; ".join(f"{row['value']} {row['change']:+.2f} (KL {row['kl']:.2f})" for row in rows)
    print(f"{where} landscape sea, {FACTOR}: {told}", flush=True)


def measure_classes(found: Landscape) -> list[dict[str, Any]]:
    """One layer, the band, and the band with the strength over its number, each with one mean and with two."""
    setup, rows = found.setup, []
    band = found.band
    cases = {
        "one layer": found.fitted(found.middle),
        "band": found.fitted(band),
        "band, strength over its number": found.fitted(band, 2 * found.base_strength / len(band)),
    }
    for name, editor in cases.items():
        own = around(editor, prompt_means(found, editor.layers))
        random = sl.random_editor_like(editor, 0)
        chance = float((setup.gaps(setup.held_out, [random])[0] - setup.plain).mean())
        for means, gaps, on_text in (
            ("one mean", setup.gaps(setup.held_out, [editor])[0], editor),
            ("a mean per class", gaps_of_both(found, own, editor), own),
        ):
            found_here = changes(gaps, setup.plain)
            kl = setup.first_look.measure(on_text).kl
            rows.append(
                {
                    "value": f"{name}, {means}",
                    "n": len(setup.plain),
                    **found_here,
                    "random": chance,
                    "kl": kl,
                    "moved": 0.0,
                }
            )
    return rows
