"""Activations of demonstrations: any sites, one vector per text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.cache import load_tensors, save_tensors
from sea_lens.data.chat import PromptForm
from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.bridge import Model, ModelInfo
from sea_lens.models.by_site import BySite as BySite
from sea_lens.models.sinks import Sinks
from sea_lens.models.sites import Site, choose_sites, named_sites

Role = Literal["neutral", "positive", "negative"]
ROLES: tuple[Role, ...] = ("neutral", "positive", "negative")
TokenChoice = Literal["last", "last_content", "mean"] | int
"""Which token's activation stands for a text: see `sea_lens.collect_activations`."""

FORMAT = "sea_lens.activations/2"
SHOWN = 4
"""Shapes that an error names."""
FORMAT_OF_0_1 = "sea_lens.activations/1"


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations of n demonstrations: `activations.positive[layer]` is `[n, width]`.

    Example:
        >>> given = sl.Activations.from_tensors(positive={3: torch.randn(50, 8)}, negative={3: torch.randn(50, 8)})
        >>> given.positive[3].shape
        torch.Size([50, 8])

    Attributes:
        sides: By role, of those there are: `positive`, `negative` and (for methods that need it) `neutral`, the prompt
            with the model's own answer. Row i belongs to the same demonstration everywhere.
        token: Which token of a text they belong to.
        model: The model they come from, where known.
        demonstrations: Digest of the demonstrations, where known.
        editor: Fingerprint of the editor they were collected under; None for those of the unedited model.
        sinks: The model's attention sinks, which editors fitted on these spare; None where there are none.
        form: What the prompts were put into and how answers end, where known.
    """

    sides: Mapping[Role, BySite]
    token: TokenChoice = "last"
    model: ModelInfo | None = None
    demonstrations: str | None = None
    editor: str | None = field(default=None, kw_only=True)
    sinks: Sinks | None = field(default=None, kw_only=True)
    form: PromptForm | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "sides", {role: self.sides[role] for role in ROLES if role in self.sides})
        sites = {role: list(side) for role, side in self.sides.items()}
        if not sites or not next(iter(sites.values())) or any(found != self.sites for found in sites.values()):
            named = "; ".join(f"{role} {named_sites(found) or 'none'}" for role, found in sites.items())
            raise InputError(f"All roles must have the same layers, at least one; they have: {named}.")
        shapes = {(role, site): tuple(side[site].shape) for role, side in self.sides.items() for site in side}
        of_name: dict[str, set[tuple[int, ...]]] = {}
        for (_, site), shape in shapes.items():
            of_name.setdefault(site.name, set()).add(shape)
        if any(len(found) > 1 for found in of_name.values()) or any(len(shape) != 2 for shape in shapes.values()):
            first = {shape: f"{shape} first at {role} {site}" for (role, site), shape in reversed(shapes.items())}
            raise InputError(
                "All activations of a site must be [n, width] with one n and one width, row i belonging to demonstration i "
                f"in every role; the shapes are {', '.join([*first.values()][: -SHOWN - 1 : -1])}."
            )
        if len({shape[0] for shape in shapes.values()}) > 1 or self.n == 0:
            raise InputError(
                "All sites need activations of the same demonstrations, at least one; "
                f"n is {sorted({shape[0] for shape in shapes.values()})}."
            )
        for role, side in self.sides.items():
            for site, tensor in side.items():
                if not tensor.is_floating_point():
                    raise InputError(
                        f"Activations must be floating-point; the {role} ones of {_called(site)} are {tensor.dtype}."
                    )
                bad = (~tensor.isfinite().all(dim=1)).nonzero().flatten().tolist()
                if bad:
                    raise InputError(
                        f"The {role} activations of {_called(site)} hold NaN or infinity in {len(bad)} of {self.n} rows: "
                        f"{bad[:10]}. Look at those demonstrations, or run the model in float32 or bfloat16."
                    )

    def __getitem__(self, role: Role) -> BySite:
        if role not in self.sides:
            raise InputError(f"There are no {role} activations; there are {', '.join(self.roles)} ones.")
        return self.sides[role]

    @property
    def neutral(self) -> BySite:
        """Of the prompt with the model's own answer.

        Raises:
            InputError: If there are none.
        """
        return self["neutral"]

    @property
    def positive(self) -> BySite:
        """Of the prompt with the positive completion."""
        return self["positive"]

    @property
    def negative(self) -> BySite:
        """Of the prompt with the negative completion."""
        return self["negative"]

    @classmethod
    def from_tensors(
        cls,
        *,
        positive: Mapping[int, Tensor] | Mapping[str, Tensor] | Mapping[Site, Tensor],
        negative: Mapping[int, Tensor] | Mapping[str, Tensor] | Mapping[Site, Tensor],
        neutral: Mapping[int, Tensor] | Mapping[str, Tensor] | Mapping[Site, Tensor] | None = None,
        site: str = "resid_post",
        token: TokenChoice = "last",
        model: Model | None = None,
    ) -> Activations:
        """Activations from tensors of your own.

        Args:
            positive: `[n, width]` by site: integers are layers of `site`, texts are hook names.
            negative: The same.
            neutral: The same; None where the method needs none.
            site: What integers are layers of.
            token: The token they belong to; goes on the card of editors fitted on them.
            model: The model they come from; editors fitted on them then know its depth and name.

        Raises:
            InputError: If roles differ in sites or shapes, or hold NaN or infinity (which rows and layer).
        """
        check_arguments(Activations.from_tensors, locals())
        given: dict[Role, object] = {"neutral": neutral, "positive": positive, "negative": negative}
        sides: dict[Role, BySite] = {}
        for role, tensors in given.items():
            if tensors is None:
                continue
            if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
                raise InputError(f"{role} is tensors [n, width] by layer, and a {type(tensors).__name__} was given.")
            sides[role] = BySite({key: t.detach().to("cpu", copy=True) for key, t in tensors.items()}, site)
        return cls(sides, token, None if model is None else ModelInfo.of(model))

    @property
    def roles(self) -> list[Role]:
        """The sides there are."""
        return list(self.sides)

    @property
    def sites(self) -> list[Site]:
        """The sites there are, as a pass comes to them."""
        return list(next(iter(self.sides.values())))

    @property
    def layers(self) -> list[int]:
        """The layers there are, ascending."""
        return sorted({site.layer for site in self.sites if site.layer is not None})

    @property
    def n(self) -> int:
        """Number of demonstrations."""
        return self._first.shape[0]

    @property
    def width(self) -> int:
        """Width of the activations at the first site."""
        return self._first.shape[1]

    @property
    def _first(self) -> Tensor:
        return next(iter(next(iter(self.sides.values())).values()))

    def at_sites(self, sites: Iterable[Site | int | str]) -> Activations:
        """Only these sites, as views of the same tensors.

        Args:
            sites: Layers, hook names or `Site`s; a layer stands for all of its sites.

        Example:
            >>> activations.at_sites([1, 3]).layers
            [1, 3]

        Raises:
            ModelMismatchError: If one is not there.
            InputError: If there are none.
        """
        check_arguments(Activations.at_sites, locals())
        keys = choose_sites(self.sites, sites, what="This collection")
        if not keys:
            raise InputError("No layers were asked for. Give at least one.")
        return replace(self, sides={role: BySite({key: one[key] for key in keys}) for role, one in self.sides.items()})

    def swapped(self) -> Activations:
        """Positive and negative exchanged: an editor fitted on these should do the opposite.

        Example:
            >>> torch.equal(activations.swapped().positive[0], activations.negative[0])
            True
        """
        sides = {**self.sides, "positive": self.negative, "negative": self.positive}
        return replace(self, sides=sides, demonstrations=_toggle(self.demonstrations, " swapped"))

    def shuffled(self, seed: int) -> Activations:
        """Positive and negative exchanged in a random half of the demonstrations: the control that should do nothing.

        Each demonstration is exchanged with probability 1/2, at every site alike.

        Args:
            seed: Decides which.
        """
        check_arguments(Activations.shuffled, locals())
        exchanged = torch.rand(self.n, generator=torch.Generator().manual_seed(seed)) < 0.5
        one, other = (
            BySite(
                {
                    site: torch.where(exchanged[:, None].to(first[site].device), second[site], first[site])
                    for site in self.sites
                }
            )
            for first, second in ((self.positive, self.negative), (self.negative, self.positive))
        )
        known = _toggle(self.demonstrations, f" shuffled {seed}")
        return replace(self, sides={**self.sides, "positive": one, "negative": other}, demonstrations=known)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; what is not a tensor goes into its header as JSON."""
        check_arguments(Activations.save, locals())
        facts = {
            "token": self.token,
            "model": None if self.model is None else asdict(self.model),
            "demonstrations": self.demonstrations,
            "editor": self.editor,
            "sinks": None if self.sinks is None else self.sinks.to_json(),
            "form": None if self.form is None else self.form.to_json(),
        }
        tensors = {
            f"{role}/{site.hook_name}": tensor for role, side in self.sides.items() for site, tensor in side.items()
        }
        save_tensors(tensors, Path(path), {FORMAT: json.dumps(facts)})  # one key: their order is random

    @classmethod
    def load(cls, path: str | Path) -> Activations:
        """What `save` wrote in this version or 0.1, or the folder of a finished `collect_activations(..., folder=...)` holds.

        Raises:
            FileFormatError: If the file is missing, truncated, not ours, or its collection is unfinished.
        """
        check_arguments(Activations.load, locals())
        path = Path(path)
        if path.is_dir():
            if not (path / "activations.safetensors").exists():
                raise FileFormatError(
                    f"{path} holds no finished collection. Run the same collect_activations(..., folder=...) again: "
                    "it goes on where it stopped."
                )
            path = path / "activations.safetensors"
        tensors, metadata = load_tensors(path)
        found = next((known for known in (FORMAT, FORMAT_OF_0_1) if known in metadata), None)
        if found is None:
            raise FileFormatError(f"{path} is not an activations file of sea_lens ({FORMAT}).")
        try:
            facts = json.loads(metadata[found])
            sides: dict[Role, dict[Site, Tensor]] = {}
            for key, tensor in tensors.items():
                role, site = key.split("/" if found == FORMAT else ".", 1)
                place = Site.of(site) if found == FORMAT else Site(int(site), facts["site"])
                sides.setdefault(_role(role), {})[place] = tensor
            model = None if facts["model"] is None else ModelInfo(**facts["model"])
            return cls(
                {role: BySite(side) for role, side in sides.items()},
                facts["token"],
                model,
                facts["demonstrations"],
                editor=facts.get("editor"),
                sinks=Sinks.from_json(facts.get("sinks")),
                form=PromptForm.from_json(facts.get("form")),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from error

    def __repr__(self) -> str:
        source = "tensors" if self.model is None else self.model.name
        edited = "" if self.editor is None else f" edited by {self.editor}"
        names = ", ".join(sorted({site.name for site in self.sites}))
        return (
            f"Activations({self.n} demonstrations, {', '.join(self.roles)}, {names} of layers {self.layers}, "
            f"width {self.width}, token {self.token!r}, from {source}{edited})"
        )


@dataclass(frozen=True)
class ActivationKind:
    """What activations must have in common, but for `sinks` and `form`; attributes as those of `Activations`."""

    token: TokenChoice
    model: ModelInfo | None
    editor: str | None
    sites: tuple[Site, ...]
    widths: tuple[int, ...]
    sinks: Sinks | None = field(default=None, compare=False)
    form: PromptForm | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of(cls, activations: Activations) -> ActivationKind:
        """Reads it off activations."""
        side = activations[activations.roles[0]]
        widths = tuple(side[site].shape[1] for site in activations.sites)
        origin = activations.token, activations.model, activations.editor
        return cls(*origin, tuple(activations.sites), widths, activations.sinks, activations.form)


def _called(site: Site) -> str:
    return f"layer {site.layer}" if site.name == "resid_post" else str(site)


def _role(name: str) -> Role:
    for role in ROLES:
        if role == name:
            return role
    raise ValueError(f"there is no role {name!r}")


def _toggle(demonstrations: str | None, mark: str) -> str | None:
    """A digest with a mark for an exchange; without it when the same exchange is made again, which undoes it."""
    if demonstrations is None:
        return None
    return demonstrations.removesuffix(mark) if demonstrations.endswith(mark) else demonstrations + mark
