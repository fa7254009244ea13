"""The embedded model: a world with two voices, small enough to ship and trained for real."""
