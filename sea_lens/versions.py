"""Installed versions of packages, for what is said of how a result was made."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


def versions_of(*packages: str) -> dict[str, str]:
    """By package, its installed version; those that are not installed are left out, as a source tree on the path is.

    Args:
        packages: Names as pip knows them.
    """
    return {name: found for name in packages if (found := _version(name)) is not None}


@cache
def _version(package: str) -> str | None:
    """Read once: finding it takes a tenth of a small fit."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
