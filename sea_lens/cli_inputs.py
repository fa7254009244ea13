"""What the words on the command line stand for: models, demonstrations, tokens."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Literal

from sea_lens.activations import TokenChoice
from sea_lens.demonstrations import Demonstrations
from sea_lens.errors import InputError
from sea_lens.models import Model, weights_fingerprint
from sea_lens.organism import load_organism
from sea_lens.records import read_csv_rows, read_json_objects

NAMED_TOKENS: tuple[Literal["last", "last_content", "mean"], ...] = ("last", "last_content", "mean")


class DataFormat(str, Enum):
    """How a demonstrations file is laid out."""

    auto = "auto"
    halueval = "halueval"
    bbq = "bbq"
    jsonl = "jsonl"
    csv = "csv"


def load_model(name: str, device: str) -> Model:
    """Boots a model by hub name or folder, or the embedded one."""
    if name == "organism":
        return load_organism(device)[0]
    from transformer_lens.model_bridge import TransformerBridge

    try:
        bridge: Model = TransformerBridge.boot_transformers(name, device=device)
    except OSError as error:
        raise InputError(f"No model could be loaded from {name!r}, as a folder or from the hub: {error}") from error
    return bridge


def read_demonstrations(path: Path, layout: DataFormat, n: int | None, seed: int) -> Demonstrations:
    """Reads a file, finding out its layout from its first row where none is given."""
    if layout is DataFormat.auto:
        is_csv = path.suffix.lower() == ".csv"
        records = read_csv_rows(path) if is_csv else read_json_objects(path)
        fields = set(records[0].fields) if records else set()
        if {"right_answer", "hallucinated_answer"} <= fields:
            layout = DataFormat.halueval
        elif {"ans0", "ans1", "ans2", "label"} <= fields:
            layout = DataFormat.bbq
        else:
            layout = DataFormat.csv if is_csv else DataFormat.jsonl
    if layout is DataFormat.halueval:
        return Demonstrations.from_halueval(path, n, seed)
    if layout is DataFormat.bbq:
        return Demonstrations.from_bbq(path, n, seed)
    data = Demonstrations.from_csv(path) if layout is DataFormat.csv else Demonstrations.from_jsonl(path)
    return data if n is None else data.sample(n, seed)


def prepare(
    data: Demonstrations,
    model: Model,
    template: str | None,
    chat: bool,
    ending: str | None,
    max_new_tokens: int,
    batch_size: int,
    folder: Path | None,
) -> Demonstrations:
    """Puts prompts into a template and adds the model's answers, kept in `folder` so that a resumed run has the same."""
    if template is not None and chat:
        raise InputError("Give --template or --chat, not both.")
    if template is not None:
        data = data.with_prompt_template(template.replace("\\n", "\n"))
    if chat:
        if model.tokenizer is None:
            raise InputError("This model has no tokenizer, so there is no chat template.")
        data = data.with_chat_template(model.tokenizer)
    if any(row.neutral is None for row in data):
        kept = (
            None
            if folder is None
            else folder / f"answers-of-{weights_fingerprint(model)}-{max_new_tokens}-tokens.jsonl"
        )
        if kept is not None and kept.exists():
            answered = Demonstrations.from_jsonl(kept)
            asked = [(row.prompt, row.positive, row.negative) for row in answered]
            if asked != [(row.prompt, row.positive, row.negative) for row in data]:
                raise InputError(f"{kept} holds other demonstrations. Choose another --out, or delete that folder.")
            data = answered
        else:
            data = data.with_neutral_answers(model, max_new_tokens, batch_size=batch_size)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                data.to_jsonl(kept)
    return data if ending is None else data.with_answer_ending(ending)


def parse_token(text: str) -> TokenChoice:
    """A token choice out of a command-line word."""
    for name in NAMED_TOKENS:
        if text == name:
            return name
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--token is last, last_content, mean or an integer, and {text!r} was given.") from error
