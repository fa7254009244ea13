"""Where an editor came from: method, settings, model, demonstrations, versions, and what the fit found at each site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sea_lens.arguments import check_fields
from sea_lens.cache import JSON
from sea_lens.data.chat import PromptForm
from sea_lens.editing.registry import from_plain, to_plain
from sea_lens.errors import FileFormatError
from sea_lens.models.bridge import ModelInfo
from sea_lens.models.sites import Site
from sea_lens.versions import versions_of


@dataclass(frozen=True)
class FitReport:
    """What a fit found at one site.

    Attributes:
        rank: Directions that the edit changes.
        displacement: How far the edit moves the fit's activations at strength 1, as a share of their norm.
        measured_on: Activations that this was measured on, where a sample.
        numbers: What else the method has to say, by name.
    """

    rank: int
    displacement: float | None = None
    measured_on: int | None = None
    numbers: Mapping[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    def __getitem__(self, name: str) -> int | float:
        return self.numbers[name]

    def __contains__(self, name: object) -> bool:
        return name in self.numbers

    def __str__(self) -> str:
        """What follows an edit's summary in an editor's repr."""
        text = ""
        if "rank_positive" in self:
            text += f" (positive {self['rank_positive']:g}, negative {self['rank_negative']:g})"
        if self.displacement is not None:
            text += f", at strength 1 moves the fit's activations by {self.displacement:.1%} of their norm"
        if "reached" in self:
            text += f", reaches {self['reached']:.0%} of what it should move values by"
        if "unit" in self:
            outside, beyond = (self[f"clamped_{what}"] for what in ("activations", "features"))
            text += f", clamps {outside:.2%} of their entries and {beyond:.2%} of the edited features"
        return text


@dataclass(frozen=True)
class EditorCard:
    """Where an editor came from.

    Attributes:
        method: The method's registered name, such as `"sea"`.
        settings: Its settings, with which it can be fitted again.
        token: Which token of each text it was fitted on.
        model: The model it was fitted on, where known.
        n_demonstrations: How many demonstrations it was fitted on.
        demonstrations: Their digest, where known.
        reports: What the fit found, by site.
        versions: Of sea_lens, torch and (where it took part) transformer_lens.
        form: What its prompts were put into and how its answers end, where known.
        in_sequence: Whether it was fitted site after site, each under the edits before it (`sea_lens.fit_in_sequence`).

    Example:
        >>> editor.card.method, editor.card.settings["center"], editor.card.n_demonstrations
        ('sea', True, 120)
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    token: str | int = "last"
    model: ModelInfo | None = None
    n_demonstrations: int | None = None
    demonstrations: str | None = None
    reports: Mapping[Site, FitReport] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    form: PromptForm | None = None
    in_sequence: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> dict[str, JSON]:
        """The card as plain JSON values.

        Raises:
            InputError: If a setting cannot be written.
        """
        return {
            "method": self.method,
            "settings": {name: to_plain(value, path=f"The setting {name}") for name, value in self.settings.items()},
            "token": self.token,
            "model": None if self.model is None else asdict(self.model),
            "n_demonstrations": self.n_demonstrations,
            "demonstrations": self.demonstrations,
            "reports": {
                site.hook_name: {**asdict(found), "numbers": dict(found.numbers)}
                for site, found in self.reports.items()
            },
            "versions": dict(self.versions),
            "form": None if self.form is None else self.form.to_json(),
            **({"in_sequence": True} if self.in_sequence else {}),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> EditorCard:
        """The card that `to_json` wrote, of this version and of 0.1. Fields of later versions are left out.

        Raises:
            FileFormatError: If it is not a card.
        """
        try:
            given = {one.name: plain[one.name] for one in fields(cls) if one.name in plain}
            if "hyper_parameters" in plain:
                given |= _of_0_1(plain)
            else:
                given["settings"] = {name: from_plain(value, {}) for name, value in plain["settings"].items()}
                given["reports"] = {Site.of(site): FitReport(**found) for site, found in plain["reports"].items()}
            given["form"] = PromptForm.from_json(given.get("form"))
            if given.get("model") is not None:
                given["model"] = ModelInfo(**given["model"])
            return cls(**given)
        except FileFormatError:
            raise
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise FileFormatError(f"This is not an editor's card: {error}") from error


NOT_NUMBERS = ("rank", "displacement", "measured_on")


def _of_0_1(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and reports of a card of version 0.1, which was spelled otherwise."""
    settings = {name.replace("centre", "center"): _setting(value) for name, value in plain["hyper_parameters"].items()}
    reports = {
        Site(int(layer), plain.get("site", "resid_post")): FitReport(
            int(found.get("rank", 0)),
            found.get("displacement"),
            found.get("measured_on"),
            {name: value for name, value in found.items() if name not in NOT_NUMBERS},
        )
        for layer, found in plain.get("layers", {}).items()
    }
    return {"settings": settings, "reports": reports}


def _setting(value: Any) -> Any:
    """A pair, or a feature map by its name and parameters."""
    if isinstance(value, dict) and "name" in value:
        return from_plain(
            {"kind": value["name"], "fields": {name: one for name, one in value.items() if name != "name"}}, {}
        )
    return tuple(value) if isinstance(value, list) else value


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide what an editor does."""
    return versions_of("sea-lens", "torch", "transformer-lens")
