"""Checks types and shapes as jaxtyping's import hook does, at a fraction of its time.

jaxtyping writes two functions for each decorated one, binds and checks all arguments twice per call, and decorates inner
functions anew each time they are defined, which takes milliseconds. Here beartype checks once, inside a scope of axis names
where a signature has any; inner functions, such as hooks, are checked value by value; and of a protocol each class is tried
once, as looking for the attributes of a TransformerBridge gathers all its hooks.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import is_dataclass
from functools import cache, wraps
from types import CodeType
from typing import Annotated, Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype
from beartype.door import die_if_unbearable
from beartype.vale import Is
from jaxtyping import TypeCheckError, config, jaxtyped

PROTOCOLS = {"sea_lens.models.bridge": ("Model", "EditsModels"), "sea_lens.data.chat": ("Tokenizer",)}
"""Those of objects that are passed everywhere."""


def checked(decorated: Any) -> Any:
    """A function or a method, or a dataclass's `__init__`, that checks what it is called with and what it returns."""
    if inspect.isclass(decorated):
        if is_dataclass(decorated) and not hasattr(decorated.__init__, "is_checked"):
            decorated.__init__ = checked(decorated.__init__)
        return decorated
    if isinstance(decorated, classmethod | staticmethod):
        return type(decorated)(checked(decorated.__func__))
    if isinstance(decorated, property):
        return property(checked(decorated.fget))
    if "<locals>" in decorated.__qualname__ or inspect.isgeneratorfunction(decorated):
        return _value_by_value(decorated)
    return _once_called(decorated)


def _once_called(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Written when it is first called: most functions are not, in one process."""
    whole = None

    @wraps(plain)
    def call(*args, **options):
        nonlocal whole
        if config.jaxtyping_disable:
            return plain(*args, **options)
        if whole is None:
            whole = _whole(plain)
        return whole(*args, **options)

    call.is_checked = True
    return call


def _whole(plain: Callable[..., Any]) -> Callable[..., Any]:
    own = plain.__annotations__
    hints = {name: resolved(hint, plain.__globals__) for name, hint in own.items()}
    plain.__annotations__ = hints
    whole = beartype(plain, conf=how())
    plain.__annotations__ = own  # which the library reads
    if not any(map(has_shapes, hints.values())):
        return whole

    def scoped(*args, **options):
        with jaxtyped("context"):
            return whole(*args, **options)

    return scoped


def how() -> BeartypeConf:
    """Errors are jaxtyping's, which are TypeErrors. While the package is being imported, protocols are tried each time."""
    return _how(all(hasattr(sys.modules.get(module), names[-1]) for module, names in PROTOCOLS.items()))


@cache
def _how(once: bool) -> BeartypeConf:
    protocols = [getattr(sys.modules[module], name) for module, names in PROTOCOLS.items() for name in names if once]
    return BeartypeConf(
        violation_type=TypeCheckError,
        hint_overrides=FrozenDict({each: Annotated[object, Is[_has_once(each)]] for each in protocols}),
    )


def _has_once(protocol: type) -> Callable[[object], bool]:
    from sea_lens.arguments import follows  # later than the import hook

    known = set[type]()

    def has(value):
        if type(value) not in known and follows(value, protocol):
            known.add(type(value))
        return type(value) in known

    return has


def resolved(hint: Any, names: dict[str, Any]) -> Any:
    """An annotation as an object; anything where a name of it is known to type checkers alone."""

    def has(value): ...

    has.__annotations__ = {"value": hint}
    try:
        return get_type_hints(has, names, include_extras=True)["value"]
    except Exception:  # as jaxtyping does: not every annotation is there at run time
        return Any


def has_shapes(hint: Any) -> bool:
    """Whether an annotation names axes."""
    if isinstance(hint, list):
        return any(map(has_shapes, hint))
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or any(map(has_shapes, get_args(hint)))


HINTS: dict[CodeType, tuple[list[Any], dict[str, Any]]] = {}
"""By inner function: the annotations of its positional parameters, and all by name."""


def _value_by_value(inner: Callable[..., Any]) -> Callable[..., Any]:
    if inner.__code__ not in HINTS:
        hints = {name: resolved(hint, inner.__globals__) for name, hint in inner.__annotations__.items()}
        positional = [
            hints.get(name, Any)
            for name, one in inspect.signature(inner).parameters.items()
            if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        HINTS[inner.__code__] = positional, hints
    positional, hints = HINTS[inner.__code__]

    @wraps(inner)
    def call(*args, **options):
        if config.jaxtyping_disable:
            return inner(*args, **options)
        with jaxtyped("context"):
            for value, hint in zip(args, positional, strict=False):
                die_if_unbearable(value, hint, conf=how())
            for name, value in options.items():
                die_if_unbearable(value, hints.get(name, Any), conf=how())
            found = inner(*args, **options)
            die_if_unbearable(found, hints.get("return", Any), conf=how())
            return found

    return call


def import_hook(package: str) -> AbstractContextManager[None]:
    """jaxtyping's, but what it writes above every function leads here, from now on."""
    jaxtyping.jaxtyped = lambda *, typechecker: checked
    return jaxtyping.install_import_hook(package, "beartype.beartype")
