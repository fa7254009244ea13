"""What goes wrong, by name. Every message says what was given, what was expected and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Data or an argument that cannot be used: empty or unequal demonstrations, a missing column, NaN activations."""


class ModelMismatchError(ValueError):
    """A model that an editor, a layer or a site does not fit."""


class FileFormatError(ValueError):
    """A file that is unreadable, truncated, tampered with or not ours."""


class HookNeverFiredError(RuntimeError):
    """An editor was attached to a model and no forward pass reached any of its hooks."""


class SeaLensWarning(UserWarning):
    """Something that runs but probably not as meant: an edit that edits nothing, a confounded data set.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", sl.SeaLensWarning)  # a script that would rather stop than go on
        ...     sl.MeanDifference().fit(activations).layers
        [0, 1, 2, 3]
    """


class BrokenModelWarning(SeaLensWarning):
    """An edit that breaks the model: what is measured under it says little.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     damage = sl.measure_damage(model, [], editor.scaled(4.0))
        >>> issubclass(caught[-1].category, sl.BrokenModelWarning)
        True
    """


def reason_of(error: BaseException) -> str:
    """What a reader's error says; of the system's own, without its number and the path, which our messages name.

    Args:
        error: What was raised.
    """
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
