"""One published method a file: settings in, editor out."""


__all__ = ["iti", "leace", "mean_difference", "sas", "sea"]
from sea_lens.methods import iti, leace, mean_difference, sas, sea
