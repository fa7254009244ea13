"""One published method a file; each is one `fit_*` function from activations to an editor."""
