"""Edit a language model's residual stream in closed form, and see why the edit works."""

from sea_lens.activations import Activations
from sea_lens.collection import collect_activations
from sea_lens.demonstrations import Demonstration, Demonstrations
from sea_lens.editor import Editor
from sea_lens.editor_card import EditorCard
from sea_lens.methods.sea import fit_sea

__all__ = [
    "Activations",
    "Demonstration",
    "Demonstrations",
    "Editor",
    "EditorCard",
    "collect_activations",
    "fit_sea",
]
