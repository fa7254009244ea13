"""Edits, the tokens where they act, and the editor that hooks them into a model, whatever method made them."""
