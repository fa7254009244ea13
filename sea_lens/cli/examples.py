"""Commands to copy, under the help of each. On embedded models they work as they stand, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[str]] = {
    "demo": ("sea-lens demo",),
    "methods": ("sea-lens methods",),
    "collect": (
        "sea-lens collect organism organism --max-new-tokens 1",
        "sea-lens collect smollm2 qa_data.json --n 200 --chat",
    ),
    "fit": (
        "sea-lens fit sea --activations activations --center --layers first:3",
        "sea-lens fit mean-difference organism organism --layers 2",
    ),
    "fit sea": ("sea-lens fit sea --activations activations --center --layers first:3",),
    "tune": ("sea-lens tune sea organism organism --max-new-tokens 1",),
    "generate": ('sea-lens generate organism editor "<plain> Q Mira home A" --strengths 0,1,2',),
    "chat": ("sea-lens chat smollm2 editor",),
    "inspect": ("sea-lens inspect editor",),
    "effects": (
        "sea-lens effects organism editor organism --control 19",
        "sea-lens effects organism editor organism --effect top_token --json",
    ),
    "ablate": ("sea-lens ablate organism editor organism --mode only --mode without",),
    "probe": ("sea-lens probe organism editor organism --max-new-tokens 1",),
    "spectrum": ("sea-lens spectrum organism editor organism --max-new-tokens 1",),
    "evaluate": (
        "sea-lens evaluate truthfulqa organism organism --editor editor",
        "sea-lens evaluate bbq bias-organism bias-organism --n 100",
    ),
    "compare": (
        "sea-lens compare organism editor tuned=tuning/editor --truthfulqa organism",
        "sea-lens compare organism organism --methods sea,leace --trials 4",
    ),
    "transfer": ("sea-lens transfer sea organism organism --truthfulqa organism",),
    "data-efficiency": (
        "sea-lens data-efficiency sea organism organism --truthfulqa organism \\",
        "    --size 25 --size 100",
    ),
    "massive": ("sea-lens massive organism",),
    "study": ("sea-lens study organism organism organism --max-new-tokens 1",),
    "export": ("sea-lens export editor editor.gguf",),
}
"""By a command's words: what to type. `smollm2` stands for a model of your own."""
