"""How the sparse autoencoder of the embedded model was made: `python -m experiments.sae --out sea_lens/worlds/sae`.

A batch top-k SAE (Bussmann et al. 2024) on the residual stream after a layer, on every token of documents but `<bos>`. What
is kept is a JumpReLU SAE with one threshold for all features, as SAELens and dictionary_learning keep theirs. `--model
FOLDER --data FILE` trains one on another model, on the texts of a JSON file. What it explains is measured on other texts,
with the float16 weights that are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import sea_lens as sl
from experiments.worlds.documents import document
from sea_lens.models.bridge import Model
from sea_lens.models.tokens import all_token_ids
from sea_lens.sae.sae import SAE
from sea_lens.worlds.facts import World


@torch.no_grad()
def states(model: Model, texts: Sequence[str], layer: int, longest: int = 128, batch_size: int = 64) -> Tensor:
    """The residual stream after a layer at every token of texts but the first, `[n_tokens, d_model]`."""
    rows = sorted((ids[:longest] for ids in all_token_ids(model, list(texts))), key=len)
    found: list[Tensor] = []

    def keep(tensor: Tensor, hook: object) -> None:
        found.extend(row[start + 1 :] for row, start in zip(tensor.cpu(), starts, strict=True))

    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        for same in {len(row) for row in batch}:  # no padding
            ids = torch.tensor([row for row in batch if len(row) == same])
            starts = [0] * len(ids)
            with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", keep)]):
                model(ids, use_cache=False, return_type=None, stop_at_layer=layer + 1)
    return torch.cat(found)


def train(x: Tensor, n_features: int, k: int, steps: int, seed: int, batch: int = 1024, lr: float = 2e-3) -> SAE:
    """Trains on activations `[n, width]`; features that fell silent learn what the others miss (Gao et al. 2024)."""
    generator = torch.Generator().manual_seed(seed)
    width, scale = x.shape[1], float(x.std(0).square().sum().sqrt())
    decoder = functional.normalize(torch.randn(n_features, width, generator=generator), dim=1)
    bias = x.mean(0)
    parameters = {
        "encoder": decoder.T.clone(),
        "encoder_bias": torch.zeros(n_features),
        "decoder": decoder.clone(),
        "decoder_bias": bias / scale,
    }
    for tensor in parameters.values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(list(parameters.values()), lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0) * min(1.0, 3 * (1 - step / steps))
    )
    silent, threshold = torch.zeros(n_features), 0.0
    started = time.time()
    for step in range(steps):
        rows = x[torch.randint(len(x), (batch,), generator=generator)] / scale
        centered = rows - parameters["decoder_bias"]
        before = (centered @ parameters["encoder"] + parameters["encoder_bias"]).relu()
        least = before.detach().flatten().topk(k * batch, sorted=False).values.min()
        codes = torch.where(before >= least, before, torch.zeros_like(before))
        missed = centered - codes @ parameters["decoder"]
        loss = missed.square().sum(1).mean()
        fired = (codes.detach() > 0).any(0)
        silent = torch.where(fired, torch.zeros_like(silent), silent + batch)
        dead = silent > 20 * batch
        if dead.any():
            own = torch.where(dead, before, torch.zeros_like(before))
            values, indices = own.topk(min(32, int(dead.sum())), dim=1)
            helped = torch.zeros_like(own).scatter(1, indices, values) @ parameters["decoder"]
            loss = loss + (missed.detach() - helped).square().sum(1).mean() / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            parameters["decoder"].copy_(functional.normalize(parameters["decoder"], dim=1))
            kept = codes.detach()[codes.detach() > 0]
            threshold = float(kept.min()) if step == 0 else 0.99 * threshold + 0.01 * float(kept.min())
        if step % 500 == 0:
            print(
                f"step {step} loss {loss.item():.4f} dead {int(dead.sum())} {time.time() - started:.0f} s", flush=True
            )
    found = {name: tensor.detach() for name, tensor in parameters.items()}
    # Codes in the activations' own units: what is read is divided by the scale, and codes are multiplied by it.
    return SAE(
        found["encoder"],
        found["encoder_bias"] * scale,
        found["decoder"],
        found["decoder_bias"] * scale,
        "jumprelu",
        torch.full((n_features,), threshold * scale),
        subtracts_bias=True,
    )


@torch.no_grad()
def loss_through(model: Model, texts: Sequence[str], layer: int, sae: SAE | None, longest: int = 128) -> float:
    """Mean cross-entropy of tokens, where the layer gives what the SAE decodes but at the first token; its own for None."""

    def decode(tensor: Tensor, hook: object) -> Tensor:
        assert sae is not None
        return torch.cat([tensor[:, :1], sae.decode(sae.encode(tensor[:, 1:])).to(tensor.dtype)], dim=1)

    hooks = [] if sae is None else [(f"blocks.{layer}.hook_resid_post", decode)]
    total, count = 0.0, 0
    for ids in all_token_ids(model, list(texts)):
        row = torch.tensor([ids[:longest]])
        with model.hooks(fwd_hooks=hooks):
            logits = model(row, use_cache=False)
        losses = functional.cross_entropy(logits[0, :-1].float(), row[0, 1:], reduction="none")
        total, count = total + float(losses.sum()), count + len(losses)
    return total / count


def texts_of(arguments: argparse.Namespace, model: Model) -> tuple[list[str], list[str]]:
    """Texts to train on, and others to measure on."""
    if arguments.model == "organism":
        world, rng = World.build(), random.Random(arguments.seed)
        texts = [document(world, rng) for _ in range(arguments.texts)]
        return texts, [document(world, random.Random(10_000 + number)) for number in range(1000)]
    found = json.loads(Path(arguments.data).read_text(encoding="utf-8"))
    return found[: arguments.texts], found[arguments.texts : arguments.texts + 100]


def write(arguments: argparse.Namespace, model: Model, sae: SAE, n_tokens: int, others: Sequence[str]) -> None:
    """Writes an SAE with float16 weights, and what these explain of other texts."""
    source = replace(sae.identity, model=model.cfg.model_name)
    sae = replace(sae, site=f"blocks.{arguments.layer}.hook_resid_post", source=source)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sae.save_pretrained(arguments.out, torch.float16)
    kept, held_out = sl.load_sae(arguments.out), states(model, others, arguments.layer)
    found, told = kept.measure(held_out), list(others)[: 300 if arguments.model == "organism" else 20]
    fired = torch.stack([(kept.encode(rows) > 0).any(0) for rows in held_out.split(4096)]).any(0)
    mean = replace(kept, decoder=torch.zeros_like(kept.decoder), decoder_bias=held_out.mean(0))
    settings = {name: getattr(arguments, name) for name in ("layer", "features", "k", "steps", "seed", "texts")}
    measured = {
        **settings,
        "tokens": n_tokens,
        "tokens held out": len(held_out),
        "explained variance": found.explained_variance,
        "explained variance with float32 weights": sae.measure(held_out).explained_variance,
        "L0": found.l0,
        "features that never fire": int((~fired).sum()),
        "loss": loss_through(model, told, arguments.layer, None),
        "loss through the SAE": loss_through(model, told, arguments.layer, kept),
        "loss through the mean": loss_through(model, told, arguments.layer, mean),
    }
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


def main(arguments: argparse.Namespace) -> None:
    """Trains, writes, and measures on other texts."""
    torch.set_num_threads(1)
    model = sl.load_model(arguments.model)
    texts, others = texts_of(arguments, model)
    x = states(model, texts, arguments.layer)
    print(f"{len(x)} tokens to train on", flush=True)
    sae = train(x, arguments.features, arguments.k, arguments.steps, arguments.seed)
    write(arguments, model, sae, len(x), others)


def settings() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="organism")
    parser.add_argument("--data", type=Path, help="a JSON list of texts, for a model other than the embedded one")
    parser.add_argument("--texts", type=int, default=16_000)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main(settings().parse_args())
