"""Who takes part in a comparison of methods: which methods, on what activations, with which settings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sea_lens.data.demonstrations import Demonstrations
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.methods.budget import own_site, sites_to_collect
from sea_lens.methods.method import METHODS, Method
from sea_lens.models.activations import Activations, TokenChoice
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations

ALL: Literal["all"] = "all"


def chosen_methods(methods: Literal["all"] | Sequence[str | Method]) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods to compare by name, and those that cannot be compared, with the reason.

    Args:
        methods: As for `compare_methods`.

    Raises:
        InputError: If one is no method, is not registered, or is given twice.
    """
    given = [ALL] if methods == ALL else methods
    if isinstance(given, str) or not given:
        raise InputError(f'methods is "all", or a list of methods with at least one, and {methods!r} was given.')
    wanted: dict[str, Method | None] = {}
    if ALL in [one for one in given if isinstance(one, str)]:
        wanted.update(dict.fromkeys(METHODS))
    seen: set[str] = set()
    for one in given:
        if isinstance(one, str) and one == ALL:
            continue
        name = one if isinstance(one, str) else getattr(one, "name", None)
        if name not in METHODS or isinstance(one, type):
            raise InputError(f"There is no method {one!r:.80}. Give {ALL!r}, or some of {', '.join(METHODS)}.")
        if name in seen:
            raise InputError(f"The method {name!r} is given twice. Compare one set of fixed settings at a time.")
        seen.add(name)
        wanted[name] = None if isinstance(one, str) else one
    chosen: dict[str, Method] = {}
    left_out: dict[str, str] = {}
    for name, own in wanted.items():
        why = getattr(METHODS[name].cls, "why_not_compared", None)
        if why is not None:
            left_out[name] = str(why)
            continue
        try:
            chosen[name] = METHODS[name].cls() if own is None else own
        except (InputError, TypeError) as error:  # one that needs what only the user has, such as an SAE
            left_out[name] = str(error)
    return chosen, left_out


@dataclass(frozen=True, eq=False)
class Sources:
    """Activations by what a method needs, each collected once.

    Attributes:
        model: The model.
        demonstrations: To collect.
        token: As for `collect_activations`.
        max_new_tokens: Longest neutral answer.
        batch_size: Rows in one forward pass.
        folder: Where to keep them.
    """

    model: Model
    demonstrations: Demonstrations
    token: TokenChoice
    max_new_tokens: int
    batch_size: int
    folder: Path | None
    _kept: dict[tuple[object, ...], Activations] = field(default_factory=dict)

    def of(self, method: Method) -> Activations:
        """What a method is fitted on.

        Raises:
            ModelMismatchError: If the model lacks its sites.
        """
        own, neutral = own_site(method), "neutral" in method.roles
        sites = sites_to_collect(method) if own is None else (own.hook_name,)
        key = (*sites, neutral)
        if key not in self._kept:
            data, place = self.demonstrations, None
            if self.folder is not None:
                place = self.folder / f"activations-{'-'.join([*sites, *(['neutral'] if neutral else [])])}"
            if neutral and any(row.neutral is None for row in data):
                data = data.with_neutral_answers(
                    self.model, self.max_new_tokens, batch_size=self.batch_size, folder=self.folder, progress=False
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SeaLensWarning)
                self._kept[key] = collect_activations(
                    self.model,
                    data,
                    None if own is None else [own.hook_name],
                    self.token,
                    site=sites if own is None else "resid_post",
                    batch_size=self.batch_size,
                    folder=place,
                    progress=False,
                )
        return self._kept[key]


def that_fit(settings: Sequence[Method], activations: Activations) -> list[Method]:
    """The settings that can be fitted.

    Raises:
        InputError: Why the first one cannot, if none can.
    """
    found: list[Method] = []
    errors: list[InputError] = []
    for method in settings:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SeaLensWarning)
                method.fit(activations)
        except InputError as error:
            errors.append(error)
        else:
            found.append(method)
    if not found:
        raise errors[0]
    return found
