"""What made the embedded models and the tables about them, and the paper's recipes. Not part of the wheel."""
