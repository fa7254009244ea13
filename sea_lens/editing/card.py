"""Where an editor came from: method, hyper-parameters, model, site, ranks, versions, demonstrations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sea_lens.cache import JSON as JSON
from sea_lens.errors import FileFormatError
from sea_lens.models.bridge import ModelDescription


@dataclass(frozen=True)
class EditorCard:
    """Where an editor came from.

    Attributes:
        method: Name of the fitting function, such as `"sea"`.
        hyper_parameters: What it was called with.
        site: The hook it was fitted at and acts at.
        token: Which token of each text it was fitted on.
        model: The model it was fitted on, where known.
        n_demonstrations: How many demonstrations it was fitted on.
        demonstrations: Their fingerprint, where known.
        layers: By layer, what the fit found: ranks and displacement.
        versions: Of sea_lens, torch and (where it took part) transformer_lens.
    """

    method: str
    hyper_parameters: Mapping[str, JSON]
    site: str = "resid_post"
    token: str | int = "last"
    model: ModelDescription | None = None
    n_demonstrations: int | None = None
    demonstrations: str | None = None
    layers: Mapping[int, Mapping[str, JSON]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """The card as plain JSON values."""
        plain: dict[str, JSON] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> EditorCard:
        """Reads what `to_json` wrote.

        Raises:
            FileFormatError: If it is not a card.
        """
        try:
            fields = {"model": None, "layers": {}, **plain}
            if fields["model"] is not None:
                fields["model"] = ModelDescription(**fields["model"])
            fields["layers"] = {int(layer): found for layer, found in fields["layers"].items()}
            return cls(**fields)
        except (TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"This is not an editor's card: {error}") from error


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide what an editor does."""
    versions = {}
    for name in ("sea-lens", "torch", "transformer-lens"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
