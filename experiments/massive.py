"""Massive activations where texts begin with their own words: are they constant, and does their mean do?

    python -m experiments.massive /path/to/a/model

With a beginning token, every text begins alike, and a first token that sees no other has one and the same state in all of
them: the mean over texts is the value itself. Here the beginning token is left out, the massive coordinates of first tokens
are set after the layer where the largest first reaches half of its final size, and losses are compared text by text.
"""

from __future__ import annotations

import warnings
from argparse import ArgumentParser

import pandas as pd
import torch
from torch.nn import functional

import sea_lens as sl
from sea_lens.models.bridge import Model
from sea_lens.models.tokens import token_ids
from sea_lens.statistics import mean_intervals


@torch.no_grad()
def losses(model: Model, texts: list[str], editor: sl.Editor | None) -> torch.Tensor:
    """Mean cross-entropy of each text's tokens after the first, in float64."""
    found = []
    for text in texts:
        ids = torch.tensor([token_ids(model, text)], device=model.cfg.device)
        if editor is None:
            logits = model(ids, use_cache=False)
        else:
            with editor.attached(model):
                logits = model(ids, use_cache=False)
        found.append(functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).double().cpu())
    return torch.stack(found)


def main() -> None:
    """Prints what is massive, and a row per intervention."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a model's folder or name")
    model = sl.load_model(parser.parse_args().model)
    texts = sl.neutral_texts(model)
    model.cfg.default_prepend_bos = False
    warnings.simplefilter("ignore", sl.SeaLensWarning)
    found = sl.massive_tokens(model, texts, batch_size=8)
    print(found.coordinates.to_string(float_format=lambda value: f"{value:.4g}"))
    own = found.table[found.table["kind"] == "first"]
    sizes = own.assign(size=own["value"].abs()).groupby("layer")["size"].max()
    layer = int(sizes.index[sizes >= sizes.max() / 2][0])
    values = own[own["layer"] == layer].groupby("coordinate")["value"].agg(["mean", "count"])
    values = values[values["count"] >= values["count"].max() / 2]
    width, massive = model.cfg.d_model, torch.tensor(values.index.tolist())
    drawn = torch.randperm(width, generator=torch.Generator().manual_seed(0)).tolist()
    others = [index for index in drawn if index not in massive.tolist()][: len(massive)]
    zeros = torch.zeros(len(massive))
    edits = {
        "zero": sl.SetCoordinates(width, massive, zeros),
        "mean": sl.SetCoordinates(width, massive, torch.tensor(values["mean"].tolist())),
        "half": sl.SetCoordinates(width, massive, zeros, 0.5),
        "random coordinates to zero": sl.SetCoordinates(width, torch.tensor(others), zeros),
    }
    plain, rows = losses(model, texts, None), {}
    for name, edit in edits.items():
        changes = losses(model, texts, sl.Editor({layer: edit}).at_positions([0])) - plain
        low, high = mean_intervals(changes[:, None])
        ratios = torch.stack([changes.mean(), low[0], high[0]]).exp().tolist()
        rows[name] = dict(zip(("ratio", "low", "high"), ratios, strict=True))
    print(f"after layer {layer}, {len(texts)} texts, perplexity unedited {float(plain.mean().exp()):.4g}")
    print(pd.DataFrame(rows).T.to_string(float_format=lambda value: f"{value:.5g}"))


if __name__ == "__main__":
    main()
