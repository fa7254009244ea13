"""Sparse autoencoders: what they compute, and our own reader of the files that they are published in."""
