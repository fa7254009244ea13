"""Docstrings as the reference shows them: their examples as code."""

from __future__ import annotations

import re

from griffe import Extension, Object

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Examples(Extension):
    """Takes `Example:` for what the parser calls `Examples:`, so that it is shown as code."""

    def on_instance(self, *, obj: Object, **kwargs: object) -> None:
        """Changes the docstring of whatever has one."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub("Examples:", obj.docstring.value)
