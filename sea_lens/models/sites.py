"""Sites: any hook point of a model, read and written as `[batch, pos, width]`; attention heads lie side by side.

A site is named as TransformerLens names it, in either form: `Site(5)`, or `Site.of("blocks.5.hook_resid_post")`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.bridge import FwdHook, Model, check_is_model
from sea_lens.models.layers import check_count as check_count
from sea_lens.models.layers import check_layers as check_layers
from sea_lens.models.layers import named_layers as named_layers
from sea_lens.models.layers import spans
from sea_lens.models.points import points_of

NAMES = (
    "resid_pre",
    "ln1.hook_out",
    "attn.hook_z",
    "attn_out",
    "resid_mid",
    "ln2.hook_out",
    "mlp.hook_post",
    "mlp_out",
    "resid_post",
    "unembed.hook_in",
)
"""The sites that are tried in the tests, in the order in which a pass comes to them."""

ALIASES = {
    "z": "attn.hook_z",
    "attn.z": "attn.hook_z",
    "post": "mlp.hook_post",
    "mlp_post": "mlp.hook_post",
    "out": "resid_post",
}
WITHOUT_LAYER = "unembed."
PER_PAIR = ("pattern", "attn_scores")
"""Hook points that hold a number per pair of tokens."""
STREAM = frozenset({"resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "unembed.hook_in"})
"""Sites in the basis of the residual stream."""


@dataclass(frozen=True)
class Site:
    """A hook point.

    Example:
        >>> sl.Site(5).hook_name
        'blocks.5.hook_resid_post'
        >>> sl.Site.of("blocks.5.attn.hook_z")
        Site(layer=5, name='attn.hook_z')

    Attributes:
        layer: The block, counted from 0; None for a hook point outside the blocks.
        name: The hook point's name inside its block, without a leading `hook_`: `resid_post`, `mlp_out`, `attn.hook_z`.
            Outside the blocks the whole name: `unembed.hook_in`.
    """

    layer: int | None
    name: str = "resid_post"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or isinstance(self.layer, bool) or not isinstance(self.layer, int | None):
            raise InputError(
                f"A site is a layer and a name, as in Site(5, 'resid_post'), and {self.layer!r} and {self.name!r} were given."
            )
        name = canonical_name(self.name)
        object.__setattr__(self, "name", name)
        if (self.layer is None) != name.startswith(WITHOUT_LAYER):
            need = "has no layer: give None" if self.layer is not None else "needs a layer, such as Site(5, ...)"
            raise InputError(f"The site {name!r} {need}.")
        if self.layer is not None and self.layer < 0:
            raise InputError(f"A site's layer is counted from 0, and {self.layer} was given.")

    @classmethod
    def of(cls, value: Site | int | str, name: str = "resid_post") -> Site:
        """A site from a layer, a hook point's full name, or itself.

        Args:
            value: A layer of `name`; or a name such as `blocks.5.hook_resid_post` or `unembed.hook_in`.
            name: What an integer is a layer of.

        Raises:
            InputError: If it names no site.
        """
        if isinstance(value, Site):
            return value
        if isinstance(value, int):
            return cls(value, name)
        if not isinstance(value, str):
            raise InputError(
                f"A site is a layer, a hook name such as 'blocks.5.hook_resid_post' or a Site; {value!r} was given."
            )
        found = re.fullmatch(r"blocks\.([0-9]{1,6})\.(.+)", value)
        if found:
            return cls(int(found[1]), found[2])
        if value.startswith(WITHOUT_LAYER):
            return cls(None, value)
        raise InputError(
            f"The site {value!r} has no layer. Give one, as TransformerLens does: 'blocks.5.hook_{canonical_name(value)}'."
        )

    @property
    def hook_name(self) -> str:
        """TransformerLens's full name."""
        if self.layer is None:
            return self.name
        return f"blocks.{self.layer}.{self.name if '.' in self.name else 'hook_' + self.name}"

    @property
    def in_stream(self) -> bool:
        """Whether its activations are in the basis of the residual stream, which the unembedding reads."""
        return self.name in STREAM

    @property
    def is_per_pair(self) -> bool:
        """Whether it holds a number per pair of tokens, as attention patterns do, and no activation per token."""
        return self.name.rpartition(".")[2].removeprefix("hook_") in PER_PAIR

    @property
    def order(self) -> tuple[float, float, str]:
        """Sorts sites as a pass comes to them."""
        layer = float("inf") if self.layer is None else float(self.layer)
        return layer, float(NAMES.index(self.name)) if self.name in NAMES else -0.5, self.name

    def __lt__(self, other: Site) -> bool:
        return self.order < other.order

    def __str__(self) -> str:
        return self.hook_name

    def check(self, model: Model) -> str:
        """The full name, after checking that the model has the site.

        Raises:
            ModelMismatchError: If the model has no such layer or site; names the nearest that it has.
        """
        check_is_model(model)
        if self.layer is not None:
            check_layers([self.layer], model.cfg.n_layers)
        if self.hook_name not in points_of(model):
            there = sites_of(model, self.layer)
            shown = [name for name in there if name in NAMES or name in get_close_matches(self.name, there, 3)]
            raise ModelMismatchError(
                f"This architecture has no site {self.name!r} ({self.hook_name}). It has: {', '.join(shown)}"
                f"{' and others' if len(shown) < len(there) else ''}."
            )
        return self.hook_name

    def width(self, model: Model) -> int:
        """Width of an activation: `d_model` in the residual stream, `n_heads * d_head` for heads. A short pass tells others.

        Raises:
            ModelMismatchError: As `check`, or if no pass reaches the site, or what it holds is no activation per token.
        """
        self.check(model)
        return widths_of(model, [self])[0]

    def read(self, tensor: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos width"]:
        """The hook point's tensor with heads side by side."""
        if tensor.ndim == 4:
            return rearrange(tensor, "batch pos head d_head -> batch pos (head d_head)")
        return tensor

    def write(
        self, edited: Float[Tensor, "batch pos width"], like: Float[Tensor, "batch pos *width"]
    ) -> Float[Tensor, "batch pos *width"]:
        """The inverse of `read`: `edited` in the shape of the hook point's own tensor."""
        if like.ndim == 4:
            return rearrange(edited, "batch pos (head d_head) -> batch pos head d_head", head=like.shape[2])
        return edited


def choose_sites(
    there: Iterable[Site], asked: Iterable[Site | int | str], n_layers: int | None = None, what: str = "This editor"
) -> list[Site]:
    """The sites that are asked for; a layer stands for all of its sites.

    Args:
        there: The sites to choose from.
        asked: Layers (with `n_layers` negative ones count from the end), hook names or sites.
        n_layers: Depth of the model.
        what: What has the sites, for messages.

    Raises:
        ModelMismatchError: If one is not there.
    """
    known, chosen = sorted(there), dict[Site, None]()
    if isinstance(asked, int | str | Site):
        raise InputError(f"Layers are a list, and {asked!r} was given. Put it into a list.")
    for one in asked:
        layer = one + n_layers if isinstance(one, int) and one < 0 and n_layers is not None else one
        found = [site for site in known if site.layer == layer] if isinstance(layer, int) else [Site.of(layer)]
        if not found or found[0] not in known:
            layers = sorted({site.layer for site in known if site.layer is not None})
            listed = f"layers {layers}" if isinstance(one, int) else ", ".join(map(str, known))
            raise ModelMismatchError(
                f"{what} has no {'layer' if isinstance(one, int) else 'site'} {one}; it has {listed}."
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)


def choose_site(
    there: Iterable[Site], asked: Site | int | str, n_layers: int | None = None, what: str = "This editor"
) -> Site:
    """The one site that is asked for; as `choose_sites`.

    Raises:
        InputError: If a layer has several sites.
    """
    found = choose_sites(there, [asked], n_layers, what)
    if len(found) > 1:
        raise InputError(f"{what} has several sites of layer {asked}: {', '.join(map(str, found))}. Name one.")
    return found[0]


def canonical_name(name: str) -> str:
    """A site's name without its layer, in the one form used here: `resid_post`, `attn.hook_z`, `unembed.hook_in`."""
    if not isinstance(name, str) or not name:
        raise InputError(f"A site's name is a text such as 'resid_post', and {name!r} was given.")
    short = name.removeprefix("hook_")
    return ALIASES.get(short, short)


def labels_of(sites: Sequence[Site]) -> list[int | str]:
    """What tables call sites: layers where all have one name, hook names otherwise."""
    if len({site.name for site in sites}) == 1:
        return [site.hook_name if site.layer is None else site.layer for site in sites]
    return [site.hook_name for site in sites]


def named_sites(sites: Iterable[Site]) -> str:
    """Sites in words: `layers 0-8,10` of the residual stream, `attn.hook_z of layers 3`, `unembed.hook_in`."""
    by_name: dict[str, list[int]] = {}
    for site in sorted(sites):
        by_name.setdefault(site.name, []).extend([] if site.layer is None else [site.layer])
    return ", ".join(
        name
        if not layers
        else f"layers {spans(layers)}"
        if name == "resid_post"
        else f"{name} of layers {spans(layers)}"
        for name, layers in by_name.items()
    )


def sites_of(model: Model, layer: int | None = 0) -> list[str]:
    """The names of a model's sites in a block, and those of the unembedding."""
    prefix = f"blocks.{layer or 0}."
    inside = (key.removeprefix(prefix) for key in model.hook_dict if key.startswith(prefix))
    named = {canonical_name(name) if "." not in name else name for name in inside} - {"in"}
    return sorted(named) + [key for key in model.hook_dict if key == "unembed.hook_in"]


Names = str | Sequence[str]
"""One site's name in a layer, or several."""
Sites = Iterable[int | str | Site] | None
"""Layers, or sites by name; None for all layers."""


def model_sites(model: Model, layers: Sites, names: Names) -> list[Site]:
    """The sites of some layers, as a pass comes to them.

    Args:
        model: The model that has them.
        layers: Layers of each of the names, or sites that are named in full; all layers for None.
        names: Sites in a layer, such as `resid_post`, or outside the blocks, such as `unembed.hook_in`.

    Raises:
        ModelMismatchError: If the model lacks one.
        InputError: If there are none.
    """
    named = [canonical_name(name) for name in ([names] if isinstance(names, str) else names)]
    if not named:
        raise InputError("A list of sites needs at least one, such as 'resid_post'.")
    given = list(range(model.cfg.n_layers) if layers is None else layers)
    numbers = [layer for layer in given if isinstance(layer, int)]
    sites = {Site.of(each) for each in given if not isinstance(each, int)}
    sites |= {Site(None, name) for name in named if name.startswith("unembed.")}
    inside = [name for name in named if not name.startswith("unembed.")]
    if inside and (numbers or not sites):
        sites |= {Site(layer, name) for layer in check_layers(numbers, model.cfg.n_layers) for name in inside}
    for each in sites:
        each.check(model)
    return sorted(sites)


def widths_of(model: Model, sites: Sequence[Site]) -> list[int]:
    """Width of the activations at some sites: `d_model` in the residual stream, `n_heads * d_head` for heads.

    A short pass tells those outside the stream.

    Raises:
        ModelMismatchError: If no pass reaches a site, or what it holds is no activation per token.
    """
    shapes: dict[Site, tuple[int, ...]] = {}

    def look_at(site: Site) -> FwdHook:
        def look(tensor: Tensor, hook: object) -> None:
            shapes[site] = tuple(tensor.shape)

        return site.check(model), look

    outside = [look_at(site) for site in sites if not site.in_stream]
    if outside:
        with torch.no_grad(), model.hooks(fwd_hooks=outside):
            model(torch.zeros(1, 2, dtype=torch.long, device=model.cfg.device), use_cache=False)
    widths = []
    for site in sites:
        shape = (1, 2, model.cfg.d_model) if site.in_stream else shapes.get(site, ())
        if site.is_per_pair or shape[:2] != (1, 2) or len(shape) not in (3, 4):
            found = f"holds a tensor of shape {list(shape)}" if shape else "is not reached by a forward pass"
            raise ModelMismatchError(
                f"The site {site.name!r} {found}, and an activation per token is needed. Choose another site."
            )
        widths.append(shape[2] if len(shape) == 3 else shape[2] * shape[3])
    return widths
