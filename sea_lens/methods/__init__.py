"""One published method a file: settings in, editor out."""

from sea_lens.methods import iti, leace, mean_difference, sake, sas, sea

__all__ = ["iti", "leace", "mean_difference", "sake", "sas", "sea"]
