"""The paper's experiments ready to run: six models, two behaviours, one configuration each, and what a run needs."""
