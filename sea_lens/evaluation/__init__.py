"""Is the model better, and what did it cost: published benchmarks, side effects, and the experiments that combine them."""
