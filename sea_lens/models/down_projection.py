"""The last matrix of a block's MLP: the weights that edits of knowledge change, and what a keyed edit stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sea_lens.errors import ModelMismatchError
from sea_lens.models.bridge import FwdHook, Model
from sea_lens.models.quantization import is_quantized
from sea_lens.models.sites import Site, check_layers

TOLERANCE = 1e-3
"""How far what an MLP gives may be from its last matrix times the key, as a share of its spread: rounding, and no more."""


@dataclass(frozen=True, eq=False)
class DownProjection:
    """The matrix W of `mlp_out = W key + bias`.

    Attributes:
        weight: The parameter itself.
        transposed: Whether it is stored as `[d_mlp, d_model]`, as GPT-2 has it.
    """

    weight: nn.Parameter
    transposed: bool

    @property
    def matrix(self) -> Float[Tensor, "d_model d_mlp"]:
        """A view of the weights."""
        weight = self.weight.detach()
        return weight.T if self.transposed else weight


def check_key_width(model: Model, layer: int, width: int | None = None) -> None:
    """Checks that an MLP has keys, and that they have a width, if one is given.

    Raises:
        ModelMismatchError: If it is a mixture of experts, or its keys have another width.
    """
    module = _last_map(model, layer)
    sizes = (getattr(module, "in_features", None), getattr(module, "nx", None), getattr(model.cfg, "d_mlp", None))
    own = next((size for size in sizes if isinstance(size, int)), width)
    if width is not None and own != width:
        raise ModelMismatchError(
            f"This edit reads keys of width {width}, and the MLP of layer {layer} has d_mlp {own}. Fit an edit on this model."
        )


def down_projection(model: Model, layer: int) -> DownProjection:
    """The last matrix of an MLP.

    Args:
        model: A TransformerBridge.
        layer: Whose.

    Raises:
        ModelMismatchError: If it is a mixture of experts, has an adapter, or the weights are quantized or not in memory.
    """
    check_layers([layer], model.cfg.n_layers)
    module = _last_map(model, layer)
    if "base_layer" in module._modules:
        raise ModelMismatchError(
            f"The MLP's last matrix of layer {layer} has an adapter around it (PEFT), so it cannot be edited in place. Merge "
            "the adapter (model.merge_and_unload()) and wrap what comes out, or attach the activation edit."
        )
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or is_quantized(module) or weight.is_meta:
        raise ModelMismatchError(
            f"The MLP's weights of layer {layer} are quantized or not in memory, so they cannot be edited in place. Load the "
            "model without quantization, or attach the activation edit."
        )
    return DownProjection(weight, transposed=not isinstance(module, nn.Linear))


@torch.no_grad()
def check_is_linear_in_keys(model: Model, layer: int) -> None:
    """Checks by a short pass that an MLP gives its last matrix times the key: no norm, scale or clamp in between.

    Raises:
        ModelMismatchError: If it does not.
    """
    found: dict[str, Tensor] = {}
    key, out = Site(layer, "mlp.hook_post").check(model), Site(layer, "mlp_out").check(model)

    def keeping(name: str) -> FwdHook:
        def keep(tensor: Tensor, hook: object) -> None:
            found[name] = tensor

        return name, keep

    with model.hooks(fwd_hooks=[keeping(key), keeping(out)]):
        model(torch.arange(2, 10, device=model.cfg.device)[None] % model.cfg.d_vocab, use_cache=False)
    down = down_projection(model, layer)
    bias = getattr(_last_map(model, layer), "bias", None)
    made = found[key].float() @ down.matrix.float().T + (0 if bias is None else bias.float())
    given = found[out].float()
    # In half precision both are rounded, at most by some 1 % of their spread.
    tolerance = TOLERANCE if found[out].dtype in (torch.float32, torch.float64) else 20 * TOLERANCE
    if float((made - given).abs().max()) > tolerance * float(given.std()):
        raise ModelMismatchError(
            f"In layer {layer} of this model a norm or a scale follows the MLP's last matrix, so no edit of the matrix does "
            "what the activation edit does. Attach the activation edit."
        )


@torch.no_grad()
def gain_of_mlp(model: Model, layer: int) -> float:
    """How far the residual stream moves for each unit that is added to what an MLP gives: 1, or a model's own scale.

    Raises:
        ModelMismatchError: If it does not move in proportion.
    """
    out, after = Site(layer, "mlp_out").check(model), Site(layer).check(model)
    tokens = torch.arange(2, 6, device=model.cfg.device)[None] % model.cfg.d_vocab
    found: list[Tensor] = []

    def keep(tensor: Tensor, hook: object) -> None:
        found.append(tensor.float())

    def add(tensor: Tensor, hook: object) -> Tensor:
        # As long as the activation itself, so that rounding does not matter.
        moves.append(tensor.float().roll(1, -1))
        return tensor + tensor.roll(1, -1)

    moves: list[Tensor] = []
    for hooks in ([(after, keep)], [(out, add), (after, keep)]):
        with model.hooks(fwd_hooks=hooks):  # type: ignore[arg-type]
            model(tokens, use_cache=False)
    moved, move = found[1] - found[0], moves[0].to(found[0].device)
    gain = float((moved * move).sum() / move.square().sum())
    if float((moved - gain * move).abs().max()) > 0.05 * float(moved.abs().max()) or gain <= 0:
        raise ModelMismatchError(
            f"In layer {layer} of this model the residual stream does not move as what is added to {out} does, so facts "
            "cannot be edited there. Choose another layer."
        )
    return gain


def _last_map(model: Model, layer: int) -> nn.Module:
    module = getattr(getattr(list(model.blocks)[layer], "mlp", None), "out", None)
    while isinstance(module, nn.Module) and module._modules.get("_original_component") is not None:
        module = module._modules["_original_component"]
    if not isinstance(module, nn.Module):
        raise ModelMismatchError(
            f"Layer {layer} of this model has no MLP with one last matrix: it is a mixture of experts, or has no MLP. "
            "Choose a dense layer, or a dense model."
        )
    return module
