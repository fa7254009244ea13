"""What a recipe needs, before anything is fetched or loaded: bytes to fetch, memory by part, each with its formula."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from experiments.recipes.recipe import ModelSize, Recipe

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Cost:
    """One part of what a run needs.

    Attributes:
        what: In words.
        where: `"device"`, where the model runs; `"host"`; or `"disk"`.
        size: In bytes.
        formula: How it is computed.
    """

    what: str
    where: str
    size: int
    formula: str


@dataclass(frozen=True)
class Costs:
    """What a run needs.

    Attributes:
        parts: Each part.
    """

    parts: tuple[Cost, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a part: `where`, `gigabytes` (10^9 bytes), `formula`; indexed by `what`."""
        rows = [(part.what, part.where, part.size / 1e9, part.formula) for part in self.parts]
        return pd.DataFrame(rows, columns=["what", "where", "gigabytes", "formula"]).set_index("what")

    def total(self, where: str) -> int:
        """Bytes of all parts there, which exist together."""
        return sum(part.size for part in self.parts if part.where == where)


def estimate(recipe: Recipe, size: ModelSize, n_demonstrations: int | None = None) -> Costs:
    """Estimates what a recipe needs on a model of these sizes.

    With b the bytes of a number in the model's dtype, T the recipe's `longest_text`, B its `batch_size`, L the layers that
    are edited, n the demonstrations and d the model's width:

    - weights: `b parameters`, to fetch and on the device;
    - key-value cache: `2 . 2 . n_layers . n_key_value_heads . d_head . B . T . b`: keys and values, of the prompts and of the
      answers that go on from them;
    - logits: `B T d_vocab b`, the most that one pass can give;
    - one layer's pass: `B (2 . 4 n_heads T^2 + 3 b T d_mlp)`: attention is computed in full (eagerly), twice in float32, and
      an MLP holds three tensors of its width;
    - activations: `3 . 4 n L d` in float32 on the host, and until the editor is saved twice that on disk: the batches, and
      the whole they become. What stays on disk is the model, the answers, the editor and the scores;
    - fit, one layer at a time in float64: `8 (9 n d + 5 n^2)` if n < d, else `8 (3 n d + 10 d^2)`: the sides and their QR
      factors and singular vectors, or the cross-covariance and its.

    Not counted: PyTorch itself (0.5 to 1 GB on a GPU), what the allocator holds in reserve, and the editor, whose ranks are
    not known before the fit (at most `4 . 2 n L d` bytes).

    Args:
        recipe: The recipe.
        size: Of the model that it is to run on.
        n_demonstrations: Where another number than the recipe's is used.
    """
    number = BYTES[recipe.dtype]
    n = recipe.n_demonstrations if n_demonstrations is None else n_demonstrations
    batch, length, d = recipe.batch_size, recipe.longest_text, size.d_model
    layers = len(recipe.layers_of(size.n_layers))
    weights = number * size.parameters
    cache = 4 * size.n_layers * size.n_key_value_heads * size.d_head * batch * length * number
    one_layer = batch * (8 * size.n_heads * length**2 + 3 * number * length * size.d_mlp)
    activations = 12 * n * layers * d
    fit = 8 * (9 * n * d + 5 * n**2) if n < d else 8 * (3 * n * d + 10 * d**2)
    return Costs(
        (
            Cost("model to fetch", "disk", weights, f"{size.parameters:,} parameters x {number} bytes"),
            Cost("weights", "device", weights, "the same"),
            Cost(
                "key-value cache",
                "device",
                cache,
                f"4 x {size.n_layers} layers x {size.n_key_value_heads} heads x {size.d_head} x {batch} x {length} tokens "
                f"x {number}",
            ),
            Cost(
                "logits",
                "device",
                batch * length * size.d_vocab * number,
                f"{batch} x {length} x {size.d_vocab:,} x {number}",
            ),
            Cost(
                "one layer's pass",
                "device",
                one_layer,
                f"{batch} x (8 x {size.n_heads} x {length}^2 + 3 x {number} x {length} x {size.d_mlp:,})",
            ),
            Cost("activations", "host", activations, f"3 x {n:,} x {layers} layers x {d:,} x 4"),
            Cost("fit in float64", "host", fit, "8 x (9 n d + 5 n^2)" if n < d else "8 x (3 n d + 10 d^2)"),
            Cost("until the fit", "disk", 2 * activations, "twice the activations; then deleted"),
        )
    )
