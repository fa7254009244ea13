"""Options that several commands share, as dataclasses: how demonstrations become activations, and these an editor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

import typer

from sea_lens.cli.inputs import (
    MAP_HELP,
    BatchSize,
    Chat,
    DataFormat,
    Device,
    Ending,
    FeatureUnit,
    Format,
    Merging,
    MergingSpace,
    NewTokens,
    Number,
    Projecting,
    Seed,
    Site,
    SpectrumOption,
    Template,
    TokenOption,
    check_shares,
    parse_feature_map,
    parse_feature_unit,
    parse_token,
    read_demonstrations,
    with_answers,
    with_template,
)
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.errors import InputError
from sea_lens.methods.sea.sea import SEA
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.models.sites import named_layers


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command take dataclasses of options: each of their fields is an option of the command line."""
    taken = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in taken if is_dataclass(one.annotation)}
    shown: list[inspect.Parameter] = []
    for one in taken:
        if one.name not in groups:
            shown.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(one.annotation, include_extras=True)
        shown += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in fields(one.annotation)
        ]

    @wraps(command)
    def spread_out(**given: object) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    spread_out.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # what typer reads
    spread_out.__annotations__ = {one.name: one.annotation for one in shown}
    return spread_out


@dataclass(frozen=True)
class ReadingOptions:
    """How demonstrations are read, and activations of them collected.

    Raises:
        InputError: If the token is none that there is.
    """

    format: Format = DataFormat.auto
    n: Number = None
    seed: Seed = 0
    template: Template = None
    chat: Chat = False
    answer_ending: Ending = None
    max_new_tokens: NewTokens = 32
    token: TokenOption = "last"
    site: Site = "resid_post"
    batch_size: BatchSize = 32
    device: Device = "cpu"

    def __post_init__(self) -> None:
        parse_token(self.token)  # said before the model runs, not after

    def read(self, path: Path) -> Demonstrations:
        """The demonstrations of a file, or of an embedded world."""
        return read_demonstrations(path, self.format, self.n, self.seed)

    def prompted(self, data: Demonstrations, model: Model) -> Demonstrations:
        """The same with their prompts in the template."""
        return with_template(data, model, self.template, self.chat)

    def collect(
        self, model: Model, data: Demonstrations, folder: Path | None = None, layers: str = "all"
    ) -> Activations:
        """Activations of demonstrations as `read`, answered by the model, kept in `folder` on the way."""
        chosen = named_layers(layers, model.cfg.n_layers)
        data = self.prompted(data, model)
        data = with_answers(data, model, self.answer_ending, self.max_new_tokens, self.batch_size, folder)
        return collect_activations(
            model,
            data,
            chosen,
            parse_token(self.token),
            site=self.site,
            batch_size=self.batch_size,
            folder=folder,
        )

    def refuse_for_collected(self) -> None:
        """Refuses what has no effect on activations that are collected already.

        Raises:
            InputError: If there is any.
        """
        settings = {
            "--format": self.format is not DataFormat.auto,
            "--n": self.n is not None,
            "--template": self.template is not None,
            "--chat": self.chat,
            "--answer-ending": self.answer_ending is not None,
            "--token": self.token != "last",
            "--site": self.site != "resid_post",
        }
        late = ", ".join(option for option, given in settings.items() if given)
        if late:
            raise InputError(f"{late}: no effect on activations that are collected already. Collect them anew with it.")


@dataclass(frozen=True)
class FitOptions:
    """How SEA is fitted.

    Raises:
        InputError: If a share, the feature map or its unit is impossible, before any model runs.
    """

    explained_variance: Annotated[float, typer.Option(help="Share of the covariance a subspace explains.")] = 0.998
    negative_explained_variance: Annotated[
        Optional[float], typer.Option(help="The same for the negative subspace, where it should differ.")
    ] = None
    rank: Annotated[Optional[int], typer.Option(help="Rank of both subspaces, instead of a share.")] = None
    spectrum: SpectrumOption = "squared"
    center: Annotated[bool, typer.Option("--center/--no-center", help="Subtract means first.")] = False
    projections: Projecting = "both"
    merge: Merging = "norm"
    feature_map: Annotated[str, typer.Option(help=MAP_HELP)] = "none"
    feature_unit: FeatureUnit = "median"
    merge_space: MergingSpace = "features"

    def __post_init__(self) -> None:
        check_shares(*self._shares)
        chosen_map, unit = parse_feature_map(self.feature_map), parse_feature_unit(self.feature_unit)
        if chosen_map is None and (unit != "median" or self.merge_space != "features"):
            raise InputError("--feature-unit and --merge-space have no effect without a --feature-map.")
        SEA(feature_map=chosen_map, feature_unit=unit)

    @property
    def _shares(self) -> tuple[float, float]:
        negative = self.negative_explained_variance
        return self.explained_variance, self.explained_variance if negative is None else negative

    @property
    def method(self) -> SEA:
        """SEA with these settings."""
        return SEA(
            self._shares,
            ranks=self.rank,
            spectrum=self.spectrum,
            center=self.center,
            projections=self.projections,
            merge=self.merge,
            feature_map=parse_feature_map(self.feature_map),
            feature_unit=parse_feature_unit(self.feature_unit),
            merge_space=self.merge_space,
        )
