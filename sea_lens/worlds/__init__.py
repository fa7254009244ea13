"""The embedded models: two synthetic worlds whose truth is known, and the demo on the first of them."""
