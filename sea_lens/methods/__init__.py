"""One published method a file: settings in, editor out."""

from sea_lens.methods import sea

__all__ = ["sea"]
