"""Edits, where they act, and the editor that hooks them into a model; knows no method."""
