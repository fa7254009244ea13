"""Methods: settings in, editor out. A new method is one new file: see `register_method`.

Then it can be saved, fitted again (`refit`), tuned (`tune`), controlled with shuffled or swapped demonstrations, and
used from `sea-lens fit`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import signature
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch

from sea_lens.arguments import check_arguments
from sea_lens.data.chat import PromptForm
from sea_lens.editing.card import EditorCard, FitReport, library_versions
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit, displacement
from sea_lens.editing.sparing import NotMassive
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.activations import Activations, Role, TokenChoice
from sea_lens.models.bridge import ModelInfo
from sea_lens.models.sinks import Sinks
from sea_lens.models.sites import Site, named_sites
from sea_lens.wording import either

T = TypeVar("T", bound=type)


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of settings that fits editors. Register it with `register_method`.

    Attributes:
        name: What it is called on cards and on the command line.
        roles: The sides of demonstrations that it needs, of `neutral`, `positive` and `negative`.

    Example:
        >>> from sea_lens.methods.method import Method
        >>> isinstance(sl.LEACE(), Method)  # one of your own: see `register_method`
        True
    """

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]]

    def fit(self, activations: Activations) -> Editor:
        """The editor that these settings give on these activations."""


@dataclass(frozen=True)
class MethodEntry:
    """A method as it is listed.

    Attributes:
        name: What it is called.
        cls: Its class.
        summary: The first line of its docstring.
        source: Where it was published.
    """

    name: str
    cls: type[Any]
    summary: str
    source: str


METHODS: dict[str, MethodEntry] = {}
"""Every method there is, by name."""


def register_method(name: str, *, source: str = "") -> Callable[[T], T]:
    """Registers a method, so that `refit`, `tune`, cards and the command line know it.

    Args:
        name: What cards and the command line call it.
        source: Where it was published.

    Returns:
        A decorator, which registers the class and gives it back.

    Raises:
        InputError: If another method has the name, or the class is no dataclass with `fit` and `roles`.

    Example:
        >>> @sl.register_method("first-difference", source="You 2026")
        ... @dataclass(frozen=True)
        ... class FirstDifference:
        ...     scale: float = 0.25
        ...     roles = ("positive", "negative")
        ...     def fit(self, activations):
        ...         sides = zip(activations.sites, activations.positive.values(), activations.negative.values())
        ...         edits = {site: sl.AffineEdit.of_shift(self.scale * (yes[0] - no[0])) for site, yes, no in sides}
        ...         return sl.fitted_editor(self, activations, edits)
        >>> sl.refit(FirstDifference(0.5).fit(activations), activations.swapped()).card.settings
        {'scale': 0.5}
    """
    check_arguments(register_method, locals())

    if not name:
        raise InputError("A method needs a name that is not empty.")

    def register(cls: T) -> T:
        if not isinstance(cls, type):
            raise InputError(f"A method is a class, and {cls!r:.80} was given.")
        known = METHODS.get(name)
        if known is not None and (known.cls.__module__, known.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(
                f"The method {name!r} is registered already, as {known.cls.__qualname__}. Choose another name."
            )
        if not is_dataclass(cls) or not callable(getattr(cls, "fit", None)) or not hasattr(cls, "roles"):
            raise InputError(
                f"{cls.__name__} must be a frozen dataclass of settings with roles and fit(activations) to be a method."
            )
        cls.name = name  # type: ignore[attr-defined]
        METHODS[name] = MethodEntry(name, cls, (cls.__doc__ or "").strip().split("\n")[0], source)
        return cls

    return register


def settings_of(method: Method) -> dict[str, Any]:
    """A method's settings by name."""
    return {one.name: getattr(method, one.name) for one in fields(method) if one.init}  # type: ignore[arg-type]


def method_of(editor: Editor) -> Method:
    """The method and settings that an editor was fitted with.

    Raises:
        InputError: If no method of the name on its card is registered.
    """
    entry = METHODS.get(editor.card.method)
    if entry is None:
        raise InputError(
            f"This editor is of {editor.card.method!r}, which is no method that is registered here ({', '.join(METHODS)}). "
            "Import the module that registers it."
        )
    known = {one.name for one in fields(entry.cls)}
    method: Method = entry.cls(**{name: value for name, value in editor.card.settings.items() if name in known})
    return method


def check_roles(method: Method, activations: Activations) -> None:
    """Refuses activations that lack a side of the demonstrations.

    Raises:
        InputError: Naming what is missing, and how to get it.

    Warns:
        SeaLensWarning: If some of the activations are of tokens that the editor will spare.
    """
    if not isinstance(activations, Activations):
        raise InputError(
            f"{type(method).__name__} is fitted on Activations, which collect_activations and Activations.from_tensors make, "
            f"and a {type(activations).__name__} was given."
        )
    missing = [role for role in method.roles if role not in activations.roles]
    if missing:
        how = " Call demonstrations.with_neutral_answers(model) before collecting." if "neutral" in missing else ""
        raise InputError(
            f"{type(method).__name__} needs {', '.join(method.roles)} activations, and there are no "
            f"{', '.join(missing)} ones.{how}"
        )
    _warn_of_massive_rows(method, activations)


def _warn_of_massive_rows(method: Method, activations: Activations) -> None:
    limits = {} if activations.sinks is None else activations.sinks.limits
    massive: dict[Site, int] = {}
    for site in activations.sites:
        if site.hook_name in limits:
            norms = (torch.linalg.vector_norm(activations[role][site].float(), dim=1) for role in method.roles)
            massive[site] = sum(int((each > limits[site.hook_name]).sum()) for each in norms)
    found = [site for site, count in massive.items() if count]
    if found:
        warnings.warn(
            f"Up to {max(massive.values())} of {len(method.roles) * activations.n} activations are those of attention sinks, "
            f"at {named_sites(found)}. Editors spare such tokens, so fit on others: collect another token, or other answers.",
            SeaLensWarning,
            stacklevel=4,
        )


@runtime_checkable
class Origin(Protocol):
    """What an editor's card says of the activations that it was fitted on."""

    @property
    def token(self) -> TokenChoice:
        """The token of each text that they belong to."""

    @property
    def model(self) -> ModelInfo | None:
        """The model that they come from, where known."""

    @property
    def n(self) -> int:
        """Number of demonstrations."""

    @property
    def demonstrations(self) -> str | None:
        """Digest of the demonstrations, where known."""

    @property
    def sinks(self) -> Sinks | None:
        """The model's attention sinks; None where there are none."""

    @property
    def form(self) -> PromptForm | None:
        """What the prompts were put into and how answers end, where known."""


def card_of(method: Method, origin: Origin, reports: Mapping[Site, FitReport]) -> EditorCard:
    """The card of a fit.

    Args:
        method: That fitted.
        origin: Activations, or what is left of them.
        reports: What the fit found, by site.
    """
    return EditorCard(
        method.name,
        settings_of(method),
        origin.token,
        origin.model,
        origin.n,
        origin.demonstrations,
        reports,
        library_versions(),
        origin.form,
    )


def fitted_editor(
    method: Method,
    activations: Activations,
    edits: Mapping[Site, Edit],
    numbers: Mapping[Site, Mapping[str, float]] | None = None,
) -> Editor:
    """An editor with the card of its fit: ranks, and how far each edit moves the negative activations it was fitted on.

    It spares the model's attention sinks, where the activations know of any.

    (The neutral ones move where a method takes no negative ones.)

    Args:
        method: That fitted it.
        activations: What it was fitted on.
        edits: By site. Sites that no activations are of have no displacement.
        numbers: What else the fit found, by site and name.

    Returns:
        The editor; `editor.card` has the method, its settings and these reports, so `sl.refit` can fit it again.

    Raises:
        InputError: If there is no edit, or what is given for one is none.

    Example:
        >>> shifts = {site: sl.AffineEdit.of_shift(activations.positive[site].mean(0) / 4) for site in activations.sites}
        >>> sl.fitted_editor(sl.MeanDifference(), activations, shifts).card.n_demonstrations
        120
    """
    check_arguments(fitted_editor, locals())
    moved = activations["negative" if "negative" in method.roles else method.roles[0]]
    found = numbers or {}
    reports = {
        site: FitReport(
            edit.rank, displacement(edit, moved[site]) if site in moved else None, numbers=found.get(site, {})
        )
        for site, edit in edits.items()
    }
    moves = {site: report.displacement or 0.0 for site, report in reports.items()}
    far = [site for site, move in moves.items() if move > 1]
    if far:
        warnings.warn(
            f"This edit is longer than the activations themselves at {named_sites(far)}: up to "
            f"{max(moves.values()):.3g} times. That can break the model: scale it down"
            f"{either(', and look at sea_lens.measure_damage', '')}.",
            SeaLensWarning,
            stacklevel=3,
        )
    return Editor(edits, card_of(method, activations, reports), NotMassive.of(activations.sinks))


def refit(editor: Editor, activations: Activations) -> Editor:
    """The same method with the same settings on other activations. Sites, strengths and tokens are the editor's.

    A method that chooses among sites (`chooses_sites = True`) chooses anew, among all but those that the editor is a view
    without.

    Example:
        >>> opposite = sl.refit(editor, activations.swapped())  # the control that should do the opposite
        >>> opposite.card.settings == editor.card.settings
        True

    Args:
        editor: Of any registered method.
        activations: Of the same model, with the editor's sites.

    Returns:
        An editor at the same sites, strengths and positions.

    Raises:
        InputError: If its method is not registered, or the activations lack a side or a site.
    """
    check_arguments(refit, locals())
    if editor.card.in_sequence:
        raise InputError("This editor was fitted site after site, which takes the model. Call sl.fit_in_sequence.")
    method = method_of(editor)
    chooses = bool(getattr(method, "chooses_sites", False))
    fitted = method.fit(activations if chooses else activations.at_sites(editor.sites))
    left_out = (
        editor.card.reports.keys() - editor.edits.keys() if chooses else fitted.edits.keys() - editor.edits.keys()
    )
    strengths = {edit.strength for edit in editor.edits.values()}
    edits = {}
    for site, edit in fitted.edits.items():
        if site in left_out:
            continue
        wanted = editor.edits[site].strength if site in editor.edits else max(strengths)
        edits[site] = edit.scaled(wanted / edit.strength if edit.strength else 1.0)
    found = getattr(editor.where, "of_the_fit", False)  # a choice of tokens that was fitted is fitted anew
    return replace(fitted, edits=edits, where=fitted.where if found else editor.where)


def fit_all(methods: Sequence[Method], activations: Activations, *, progress: bool = True) -> list[Editor]:
    """Each method's editor. A class with `fit_all(methods, activations)` of its own shares work between its settings."""

    def fitted(fit: Callable[..., Any], *given: object) -> Any:
        return fit(*given, **({"progress": progress} if "progress" in signature(fit).parameters else {}))

    editors: dict[int, Editor] = {}
    for cls in dict.fromkeys(type(method) for method in methods):
        indices = [index for index, method in enumerate(methods) if type(method) is cls]
        chosen = [methods[index] for index in indices]
        together = getattr(cls, "fit_all", None)
        if together is not None:
            found = fitted(together, chosen, activations)
        else:
            found = [fitted(one.fit, activations) for one in chosen]
        editors |= dict(zip(indices, found, strict=True))
    return [editors[index] for index in range(len(methods))]
