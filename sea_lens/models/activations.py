"""Activations of demonstrations: one site, every layer, one vector a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.cache import load_tensors, save_tensors
from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.bridge import Model, ModelDescription

Role = Literal["neutral", "positive", "negative"]
ROLES: tuple[Role, ...] = ("neutral", "positive", "negative")
TokenChoice = Literal["last", "last_content", "mean"] | int
"""Which token's activation stands for a text: see `sea_lens.collect_activations`."""
LayerActivations = Mapping[int, Float[Tensor, "n d_model"]]
FORMAT = "sea_lens.models.activations/1"


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations of n demonstrations: `activations.positive[layer]` is `[n, d_model]`.

    Attributes:
        neutral: By layer, `[n, d_model]`: the prompt with the model's own answer.
        positive: The same with the positive completion; row i belongs to the same demonstration everywhere.
        negative: The same with the negative completion.
        site: TransformerLens's short name of the hook they come from, and at which an editor will act.
        token: Which token of a text they belong to.
        model: The model they come from, where known.
        demonstrations: Fingerprint of the demonstrations, where known.
        editor: Fingerprint of the editor they were collected under; None for those of the unedited model.
    """

    neutral: LayerActivations
    positive: LayerActivations
    negative: LayerActivations
    site: str = "resid_post"
    token: TokenChoice = "last"
    model: ModelDescription | None = None
    demonstrations: str | None = None
    editor: str | None = None

    def __post_init__(self) -> None:
        layers = {role: sorted(self[role]) for role in ROLES}
        if not layers["neutral"] or len({tuple(found) for found in layers.values()}) > 1:
            raise InputError(f"The three roles must have the same layers, at least one; they have {layers}.")
        shapes = {(role, layer): tuple(self[role][layer].shape) for role in ROLES for layer in layers["neutral"]}
        if len(set(shapes.values())) > 1 or len(shapes["neutral", layers["neutral"][0]]) != 2:
            different = {f"{role} layer {layer}": shape for (role, layer), shape in shapes.items()}
            raise InputError(
                "All activations must be [n, d_model] with one n and one d_model, row i belonging to demonstration i "
                f"in every role; the shapes are {different}."
            )
        if self.n == 0:
            raise InputError("There are no activations: n is 0. At least one demonstration is needed.")
        for role in ROLES:
            for layer, tensor in self[role].items():
                bad = (~tensor.isfinite().all(dim=1)).nonzero().flatten().tolist()
                if bad:
                    raise InputError(
                        f"The {role} activations of layer {layer} hold NaN or infinity in {len(bad)} of {self.n} rows: "
                        f"{bad[:10]}. Look at those demonstrations, or run the model in float32 or bfloat16."
                    )
        for role in ROLES:
            object.__setattr__(self, role, MappingProxyType(dict(sorted(self[role].items()))))

    def __getitem__(self, role: Role) -> LayerActivations:
        return {"neutral": self.neutral, "positive": self.positive, "negative": self.negative}[role]

    @classmethod
    def from_tensors(
        cls,
        *,
        neutral: LayerActivations,
        positive: LayerActivations,
        negative: LayerActivations,
        site: str = "resid_post",
        token: TokenChoice = "last",
        model: Model | None = None,
    ) -> Activations:
        """Builds activations from tensors of your own.

        Args:
            neutral: By layer, `[n, d_model]`.
            positive: By layer, `[n, d_model]`.
            negative: By layer, `[n, d_model]`.
            site: The hook they come from.
            token: The token they belong to; goes on the card of editors fitted on them.
            model: The model they come from; editors fitted on them then know its depth and name.

        Raises:
            InputError: If roles differ in layers or shapes, or hold NaN or infinity (which rows and layer).
        """
        copied = [
            {layer: t.detach().to("cpu", copy=True) for layer, t in role.items()}
            for role in (neutral, positive, negative)
        ]
        description = None if model is None else ModelDescription.of(model)
        return cls(copied[0], copied[1], copied[2], site=site, token=token, model=description)

    @property
    def layers(self) -> list[int]:
        """The layers there are, ascending."""
        return list(self.neutral)

    @property
    def n(self) -> int:
        """Number of demonstrations."""
        return next(iter(self.neutral.values())).shape[0]

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return next(iter(self.neutral.values())).shape[1]

    def swapped(self) -> Activations:
        """Positive and negative exchanged: an editor fitted on these should do the opposite."""
        known = _toggle(self.demonstrations, " swapped")
        return replace(self, positive=self.negative, negative=self.positive, demonstrations=known)

    def shuffled(self, seed: int) -> Activations:
        """Positive and negative exchanged in a random half of the demonstrations: the control that should do nothing.

        Each demonstration is exchanged with probability 1/2, at every layer alike.

        Args:
            seed: Decides which.
        """
        exchanged = torch.rand(self.n, generator=torch.Generator().manual_seed(seed)) < 0.5
        one, other = (
            {
                layer: torch.where(exchanged[:, None].to(first[layer].device), second[layer], first[layer])
                for layer in self.layers
            }
            for first, second in ((self.positive, self.negative), (self.negative, self.positive))
        )
        known = _toggle(self.demonstrations, f" shuffled {seed}")
        return replace(self, positive=one, negative=other, demonstrations=known)

    def __reduce__(self) -> tuple[type[Activations], tuple[object, ...]]:
        roles = (dict(self.neutral), dict(self.positive), dict(self.negative))
        return Activations, (*roles, self.site, self.token, self.model, self.demonstrations, self.editor)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; what is not a tensor goes into its header as JSON."""
        facts = {
            "site": self.site,
            "token": self.token,
            "model": None if self.model is None else asdict(self.model),
            "demonstrations": self.demonstrations,
            "editor": self.editor,
        }
        tensors = {f"{role}.{layer}": t for role in ROLES for layer, t in self[role].items()}
        save_tensors(tensors, Path(path), {FORMAT: json.dumps(facts)})  # one key: their order is random

    @classmethod
    def load(cls, path: str | Path) -> Activations:
        """Reads what `save` wrote, or the folder of a finished `collect_activations(..., folder=...)`.

        Raises:
            FileFormatError: If the file is missing, truncated, not ours, or its collection is unfinished.
        """
        path = Path(path)
        if path.is_dir():
            if not (path / "activations.safetensors").exists():
                raise FileFormatError(
                    f"{path} holds no finished collection. Run the same collect_activations(..., folder=...) again: "
                    "it goes on where it stopped."
                )
            path = path / "activations.safetensors"
        tensors, metadata = load_tensors(path)
        if FORMAT not in metadata:
            raise FileFormatError(f"{path} is not an activations file of sea_lens ({FORMAT}).")
        try:
            facts = json.loads(metadata[FORMAT])
            roles: dict[str, dict[int, Tensor]] = {role: {} for role in ROLES}
            for key, tensor in tensors.items():
                role, layer = key.split(".")
                roles[role][int(layer)] = tensor
            model = None if facts["model"] is None else ModelDescription(**facts["model"])
            return cls(
                roles["neutral"],
                roles["positive"],
                roles["negative"],
                site=facts["site"],
                token=facts["token"],
                model=model,
                demonstrations=facts["demonstrations"],
                editor=facts.get("editor"),  # files of earlier versions lack it
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from error

    def __repr__(self) -> str:
        source = "tensors" if self.model is None else self.model.name
        edited = "" if self.editor is None else f" edited by {self.editor}"
        return (
            f"Activations({self.n} demonstrations, {self.site} of layers {self.layers}, d_model {self.d_model}, "
            f"token {self.token!r}, from {source}{edited})"
        )


@dataclass(frozen=True)
class ActivationKind:
    """What activations must have in common to be put together; attributes as those of `Activations`."""

    site: str
    token: TokenChoice
    model: ModelDescription | None
    editor: str | None
    layers: tuple[int, ...]
    d_model: int

    @classmethod
    def of(cls, activations: Activations) -> ActivationKind:
        """Reads it off activations."""
        a = activations
        return cls(a.site, a.token, a.model, a.editor, tuple(a.layers), a.d_model)


def _toggle(demonstrations: str | None, mark: str) -> str | None:
    """A fingerprint with a mark for an exchange; without it when the same exchange is made again, which undoes it."""
    if demonstrations is None:
        return None
    return demonstrations.removesuffix(mark) if demonstrations.endswith(mark) else demonstrations + mark
