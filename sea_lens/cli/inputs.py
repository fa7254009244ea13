"""The options of the command line, and what their words stand for: models, demonstrations, tokens, feature maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Optional

import torch
import typer

from sea_lens.data.benchmarks import layout_of
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.questions import Questions
from sea_lens.data.records import first_fields
from sea_lens.errors import InputError
from sea_lens.methods.sea.feature_space import ELU, FeatureMap, SquaredExponential, Tanh
from sea_lens.methods.sea.sea import Merge, MergeSpace, Projections
from sea_lens.methods.sea.spectral import Spectrum
from sea_lens.models.activations import TokenChoice
from sea_lens.models.bridge import Model
from sea_lens.worlds.bias import BiasWorld
from sea_lens.worlds.facts import World
from sea_lens.worlds.load import BIAS_WEIGHTS, WEIGHTS, load_bias_organism, load_organism

NAMED_TOKENS: tuple[Literal["last", "last_content", "mean"], ...] = ("last", "last_content", "mean")


class DataFormat(str, Enum):
    """How a demonstrations file is laid out."""

    auto = "auto"
    halueval = "halueval"
    bbq = "bbq"
    jsonl = "jsonl"
    csv = "csv"


ModelName = Annotated[
    str,
    typer.Argument(
        help="Model name on the hub, a local folder, or `organism` or `bias-organism`, the embedded models."
    ),
]
EditorName = Annotated[str, typer.Argument(help="Editor folder, or its name on the hub.")]
DemonstrationsFile = Annotated[
    Path,
    typer.Argument(
        help="HaluEval QA, BBQ, JSONL or CSV with columns prompt, positive, negative; or `organism` or `bias-organism`, an "
        "embedded world's."
    ),
]
Format = Annotated[DataFormat, typer.Option(help="Layout of the demonstrations file.")]
Sampled = Annotated[Optional[int], typer.Option("--n", help="How many to sample; all if left out.")]
Number = Annotated[Optional[int], typer.Option("--n", help="How many demonstrations to sample; all if left out.")]
Seed = Annotated[int, typer.Option(help="Of samples, of BBQ's wrong answers, and of whatever else is drawn.")]
Template = Annotated[
    Optional[str], typer.Option(help="Prompt template, such as 'Q: {question}\\nA:' (\\n is a line break).")
]
Chat = Annotated[bool, typer.Option("--chat", help="Put prompts into the tokenizer's own chat template.")]
Ending = Annotated[Optional[str], typer.Option(help="Give every answer this ending, such as '.'.")]
NewTokens = Annotated[int, typer.Option(help="Longest answer the model may give, in tokens.", min=1)]
TokenOption = Annotated[
    str, typer.Option(help="Token collected: last, last_content, mean, or an index into the answer.")
]
Layers = Annotated[str, typer.Option(help="all, first:N, last:N, or a list such as 3,5,10-20.")]
Site = Annotated[str, typer.Option(help="Hook that activations come from and edits go to.")]
BatchSize = Annotated[int, typer.Option(help="Texts in one forward pass.", min=1)]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps.")]
DTypeName = Literal["float32", "bfloat16", "float16"]
DType = Annotated[DTypeName, typer.Option(help="Precision of the model's weights and activations.")]
Projecting = Annotated[Projections, typer.Option(help="The method is both; the others are ablations.")]
Merging = Annotated[Merge, typer.Option(help="norm keeps each token's norm, sum and average do not.")]
MergingSpace = Annotated[MergeSpace, typer.Option(help="With a feature map: add projections up there, or mapped back.")]
FeatureUnit = Annotated[
    str, typer.Option(help="What is 1 to a feature map: median (absolute activation), or a number.")
]
SpectrumOption = Annotated[Spectrum, typer.Option(help="What the explained variance is a share of.")]
FEATURE_MAPS: dict[str, Callable[..., FeatureMap]] = {
    "squared-exponential": SquaredExponential,
    "tanh": Tanh,
    "elu": ELU,
}
MAP_HELP = "Edit in a feature space: squared-exponential, tanh or elu, with its parameter as in tanh:4; none is linear."


EMBEDDED = ("organism", "bias-organism")
"""The embedded models and their worlds, by the words that stand for them."""


def load_model(
    name: str,
    device: str,
    dtype: DTypeName = "float32",
    revision: str | None = None,
    reads: Iterable[Path | None] = (),
) -> Model:
    """Boots a model by hub name or folder, or an embedded one. Device `auto` spreads it over what there is.

    Args:
        name: Hub name, folder, or one of `EMBEDDED`.
        device: Where it runs.
        dtype: Of its weights; embedded ones are float32.
        revision: On the hub.
        reads: The data that it is to read.

    Raises:
        InputError: If there is no such model, or an embedded one is to read the other world's data.
    """
    if name in EMBEDDED:
        others = [str(path) for path in reads if path is not None and is_embedded(path) and str(path) != name]
        if others:
            raise InputError(
                f"The model {name!r} does not know the words of {others[0]!r}, another world. Give {others[0]!r} as the "
                f"model, or {name!r} as the data."
            )
        return (load_organism(device) if name == "organism" else load_bias_organism(device))[0]
    from transformer_lens.model_bridge import TransformerBridge

    where = {"device_map": "auto"} if device == "auto" else {"device": device}
    try:
        bridge: Model = TransformerBridge.boot_transformers(
            name, dtype=getattr(torch, dtype), revision=revision, **where
        )
    except OSError as error:
        raise InputError(f"No model could be loaded from {name!r}, as a folder or from the hub: {error}") from error
    return bridge


def is_embedded(path: Path) -> bool:
    """Whether a word stands for an embedded world's data, as it does unless there is a file of that name."""
    return str(path) in EMBEDDED and not path.exists()


def _world(path: Path) -> World | BiasWorld:
    """The embedded world that a word stands for; its model need not be loaded."""
    if str(path) == "organism":
        return World.from_json(WEIGHTS / "facts.json")
    return BiasWorld.from_json(BIAS_WEIGHTS / "topics.json")


def unescaped(template: str) -> str:
    r"""A template as it was meant: `\n` on a command line is a line break."""
    return template.replace("\\n", "\n")


def read_demonstrations(path: Path, layout: DataFormat, n: int | None, seed: int) -> Demonstrations:
    """Reads a file, or an embedded world's; the layout is found out from the first row where none is given."""
    if is_embedded(path):
        data = _world(path).demonstrations()
        return data if n is None else data.sample(n, seed)
    if layout is DataFormat.auto:
        own = DataFormat.csv if path.suffix.lower() == ".csv" else DataFormat.jsonl
        layout = {"halueval": DataFormat.halueval, "bbq": DataFormat.bbq}.get(layout_of(path) or "", own)
    if layout is DataFormat.halueval:
        return Demonstrations.from_halueval(path, n, seed)
    if layout is DataFormat.bbq:
        return Demonstrations.from_bbq(path, n, seed)
    data = Demonstrations.from_csv(path) if layout is DataFormat.csv else Demonstrations.from_jsonl(path)
    return data if n is None else data.sample(n, seed)


def read_questions(path: Path, template: str | None = None) -> Questions:
    """Reads a file, finding out its layout from its first row. `organism` or `bias-organism` is a world's held-out questions.

    Args:
        path: The file.
        template: What each question is put into, in place of what a published file's reader puts it into.

    Raises:
        InputError: If the layout is unknown, or questions with a template are pairs of sentences.
    """
    if is_embedded(path):
        questions = replace(_world(path).questions(), source=str(path))
        return questions if template is None else questions.with_prompt_template(template)
    layout = layout_of(path)
    if layout == "truthfulqa":
        return (
            Questions.from_truthfulqa(path) if template is None else Questions.from_truthfulqa(path, template=template)
        )
    if layout == "bbq":
        return Questions.from_bbq(path) if template is None else Questions.from_bbq(path, template=template)
    if layout == "crows_pairs":
        if template is not None:
            raise InputError(f"{path} holds pairs of sentences, around which no template goes. Leave it out.")
        return Questions.from_crows_pairs(path)
    fields, is_csv = first_fields(path), path.suffix.lower() == ".csv"
    if not is_csv and (fields >= {"prompt", "right", "wrong"} or fields >= {"prompt", "true", "false"}):
        questions = Questions.from_jsonl(path)
    elif layout == "halueval" or fields >= {"prompt", "positive", "negative"}:
        questions = Questions.from_demonstrations(read_demonstrations(path, DataFormat.auto, None, 0))
    else:
        raise InputError(
            f"{path} is no known question file. Its first row has: {', '.join(sorted(fields)) or 'nothing'}. Give "
            "TruthfulQA.csv, CrowS-Pairs (.csv), BBQ, JSONL with prompt, right and wrong, or a demonstrations file."
        )
    return questions if template is None else questions.with_prompt_template(template)


def with_template(data: Demonstrations, model: Model, template: str | None, chat: bool) -> Demonstrations:
    """Puts prompts into a template, or into the model's own for chats."""
    if template is not None and chat:
        raise InputError("Give --template or --chat, not both.")
    if template is not None:
        data = data.with_prompt_template(unescaped(template))
    return data.with_chat_template(model) if chat else data


def with_answers(
    data: Demonstrations,
    model: Model,
    ending: str | None,
    max_new_tokens: int,
    batch_size: int,
    folder: Path | None,
) -> Demonstrations:
    """Adds the model's answers, kept in `folder` so that a resumed run has the same, and gives all answers one ending."""
    if any(row.neutral is None for row in data):
        data = data.with_neutral_answers(model, max_new_tokens, batch_size=batch_size, folder=folder)
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


def parse_feature_map(text: str) -> FeatureMap | None:
    """A feature map out of `none`, `tanh` or `tanh:4`."""
    name, colon, parameter = text.partition(":")
    if text == "none":
        return None
    if name not in FEATURE_MAPS:
        raise InputError(
            f"--feature-map is none, {', '.join(FEATURE_MAPS)}, or one of these as in tanh:4; not {text!r}."
        )
    if not colon:
        return FEATURE_MAPS[name]()
    try:
        value = float(parameter)
    except ValueError as error:
        raise InputError(f"--feature-map {text}: {parameter!r} is not a number.") from error
    return FEATURE_MAPS[name](value)


def parse_feature_unit(text: str) -> float | Literal["median"]:
    """A unit out of `median` or a number."""
    if text == "median":
        return "median"
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--feature-unit is median or a number, and {text!r} was given.") from error


def check_shares(*shares: float) -> None:
    """Refuses impossible explained variances before the model runs, not after."""
    if not all(0 < share <= 1 for share in shares):
        raise InputError(f"An explained variance must lie in (0, 1]; {', '.join(map(str, shares))} was given.")
