"""`python -m experiments.plain_equality`: edits of plain Hugging Face models against those of the bridge, by architecture.

Tiny random models of the architectures in ../shared/architectures.py; an edit of about a token's length, at two positions,
under padding on the left. A cell is the largest difference of logits between the plain model and the bridge, both edited.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import sea_lens as sl
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.plain import SITES
from sea_lens.models.sites import Site, widths_of

ARCHITECTURES = Path(__file__).resolve().parents[2] / "shared" / "architectures.py"
NAMES = """gpt2 gptj neo neox opt bloom falcon phi phi3 gemma gemma2 gemma3 gemma3n gemma4 llama llama-tied mistral ministral3
mixtral qwen2 qwen3 qwen2moe qwen3moe qwen3next qwen3_5 olmo olmo2 olmo3 olmoe granite gptoss stablelm mamba falconh1
deepseekv3""".split()
IDS = torch.randint(2, 258, (3, 11), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[0, :3] = MASK[1, :1] = 0


def main() -> None:
    """Prints the table in Markdown."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    if not ARCHITECTURES.is_file():
        raise SystemExit(f"{ARCHITECTURES} is not here, which builds the models.")
    build = _module(ARCHITECTURES)
    print("| architecture | unedited |", *(f"`{name}` |" for name in SITES))
    print("| --- |" * 1 + " --- |" * (len(SITES) + 1))
    for name in sys.argv[1:] or NAMES:
        print(f"| {name} |", *(f"{cell} |" for cell in cells(build, name)), flush=True)


@torch.no_grad()
def cells(build: ModuleType, name: str) -> list[str]:
    """One line of the table.

    Args:
        build: The module that builds tiny models.
        name: The architecture.
    """
    try:
        plain, bridge = build.hf(name).eval(), build.bridge(name)
        takes = inspect.signature(plain.forward).parameters
        given: dict[str, Any] = {"attention_mask": MASK}
        if "position_ids" in takes:
            given["position_ids"] = (MASK.cumsum(1) - 1).clamp_min(0)
        before, theirs = plain(IDS, **given).logits, bridge(IDS, attention_mask=MASK)
    except Exception as error:
        return [f"the bridge does not run it ({type(error).__name__})", *[""] * len(SITES)]
    real = MASK.bool()
    found = [f"{float((before - theirs)[real].abs().max()):.0e}"]
    for site in (Site(None, each) if each.startswith("unembed") else Site(1, each) for each in SITES):
        try:
            editor = sl.Editor({site: _edit(widths_of(bridge, [site])[0])}).at_positions([2, -2])
            with editor.attached(bridge):
                wanted = bridge(IDS, attention_mask=MASK)
        except (ModelMismatchError, InputError):
            found.append("no such site")
            continue
        try:
            with editor.attached(plain):
                logits = plain(IDS, **given).logits
        except ModelMismatchError:
            found.append("refused")
            continue
        found.append(f"{float((logits - wanted)[real].abs().max()):.0e}")
    if not torch.equal(plain(IDS, **given).logits, before):
        found[0] += ", not left as it was"
    return found


def _edit(width: int) -> sl.AffineEdit:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(width, 3, generator=generator)).Q
    shift = 0.5 * torch.randn(width, generator=generator)
    return sl.AffineEdit.of_eigenvalues(basis, torch.tensor([1.0, -1.0, 2.0]), shift, restore_norm=True)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("architectures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
