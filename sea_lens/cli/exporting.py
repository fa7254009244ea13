"""Editors for other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sea_lens.cli.app import command
from sea_lens.cli.options import HELP
from sea_lens.cli.output import say, wrote
from sea_lens.editing.control_vector import control_vectors, export_control_vector
from sea_lens.editing.editor import Editor

HELP |= {
    "file": "The file to write.",
    "all_tokens": "Edit all tokens, those too that the editor spares, as llama.cpp cannot choose; measure that edit anew.",
    "to": "gguf is a control vector for llama.cpp, which an editor can be that adds one vector to every token.",
}


@command("Using")
def export(
    editor: str, file: Path, to: Literal["gguf"] = "gguf", strength: float = 1.0, all_tokens: bool = False
) -> None:
    """Write an editor for another program, such as llama.cpp."""
    fitted = Editor.from_pretrained(editor).scaled(strength)
    fitted = fitted.at_positions("all") if all_tokens else fitted
    export_control_vector(fitted, file)
    wrote(file.parent, [file])
    layers = list(control_vectors(fitted))
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
    say(f"{file} edits {where}. Use it as in: llama-server -m model.gguf --control-vector {file}")
