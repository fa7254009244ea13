"""The paper's experiments as JSON files, and the command that runs them."""
