"""One experiment of the paper as a configuration: model, demonstrations, fit, evaluation, and the rules that fill gaps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from experiments.recipes.published_data import BBQ, HALUEVAL, TRUTHFULQA, PublishedData
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.prompts import Q_AND_A
from sea_lens.data.questions import Questions
from sea_lens.errors import FileFormatError, InputError

FORMAT = "sea_lens.recipe/1"
Behaviour = Literal["truthfulness", "bias"]
BEHAVIOURS: tuple[Behaviour, ...] = ("truthfulness", "bias")
DEMONSTRATIONS: Mapping[Behaviour, PublishedData] = {"truthfulness": HALUEVAL, "bias": BBQ}
QUESTIONS: Mapping[Behaviour, PublishedData] = {"truthfulness": TRUTHFULQA, "bias": BBQ}


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that memory depends on.

    Attributes:
        parameters: All of them, tied ones once.
        n_layers: Blocks.
        d_model: Width of the residual stream.
        d_mlp: Width inside an MLP.
        n_heads: Query heads of an attention layer.
        n_key_value_heads: Key-value heads of one.
        d_head: Width of a head.
        d_vocab: Tokens in the vocabulary.
    """

    parameters: int
    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_vocab: int

    @classmethod
    def of_folder(cls, folder: str | Path) -> ModelSize:
        """Sizes of a saved model, out of its configuration; no weights are read.

        Raises:
            InputError: If the folder holds no model that transformers knows.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(folder)
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(config)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no language model that transformers knows: {error}") from error
        heads = config.num_attention_heads
        return cls(
            parameters=sum(parameter.numel() for parameter in empty.parameters()),
            n_layers=config.num_hidden_layers,
            d_model=config.hidden_size,
            d_mlp=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            n_heads=heads,
            n_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
            d_vocab=config.vocab_size,
        )


@dataclass(frozen=True)
class Recipe:
    """One experiment: everything but where files are and what it runs on.

    Attributes:
        model: Short name, as `llama-2-7b-chat`.
        behaviour: `"truthfulness"` (HaluEval to TruthfulQA) or `"bias"` (BBQ to BBQ).
        repository: The model's on the hub, or a folder.
        revision: Of the repository; None for its newest.
        dtype: Of weights and activations.
        size: The model's sizes, if they are known.
        n_demonstrations: To sample.
        max_new_tokens: Longest neutral answer.
        answer_ending: What every answer of the demonstrations is made to end with; None leaves them as they are.
        prompt: What demonstrations and questions alike go into: `"chat"`, `"paper"`, `"plain"` or a template.
        token: Whose activations are collected.
        site: Where.
        explained_variance: Of both subspaces.
        last_layers: How many layers are edited, from the end, in a model of `size.n_layers`.
        center: As for `fit_sea`.
        merge: As for `fit_sea`.
        feature_map: A name of `sea_lens.methods.sea.feature_space`; None for the linear edit.
        n_questions: How many questions are sampled at most; None for all.
        batch_size: Texts in one forward pass.
        longest_text: Tokens of the longest text with its answer that memory is estimated for.
        notes: What is chosen otherwise than in the paper, or was not known, and why.
    """

    model: str
    behaviour: Behaviour
    repository: str
    revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    size: ModelSize | None
    n_demonstrations: int
    max_new_tokens: int
    answer_ending: str | None
    prompt: str
    token: Literal["last", "last_content", "mean"]
    site: str
    explained_variance: float
    last_layers: int
    center: bool
    merge: Literal["norm", "sum", "average"]
    feature_map: str | None
    n_questions: int | None
    batch_size: int
    longest_text: int
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def load(cls, model: str, behaviour: str) -> Recipe:
        """A recipe that the package ships.

        Raises:
            InputError: If there is none of these names.
        """
        path = _path(model, behaviour)
        if not path.exists() or path.parent != FOLDER:
            raise InputError(
                f"There is no recipe for {model!r} and {behaviour!r}. Models are {', '.join(shipped_models())}; behaviours "
                f"are {', '.join(BEHAVIOURS)}."
            )
        return cls.from_json(path)

    @classmethod
    def from_json(cls, path: str | Path) -> Recipe:
        """Reads a recipe file.

        Raises:
            FileFormatError: If the file is none, or lacks a setting or has one that is not known.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path} could not be read as a recipe: {error}") from error
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise FileFormatError(f"{path} is no recipe of sea_lens ({FORMAT}).")
        known = {setting.name for setting in fields(cls)}
        if set(found) != known:
            missing, unknown = (
                ", ".join(sorted(names)) or "nothing" for names in (known - set(found), set(found) - known)
            )
            raise FileFormatError(f"{path}: {missing} is missing, and {unknown} is not known. Mend the file.")
        if found["behaviour"] not in BEHAVIOURS:
            raise FileFormatError(f"{path}: behaviour is one of {', '.join(BEHAVIOURS)}, not {found['behaviour']!r}.")
        size = found["size"]
        return cls(**{**found, "size": None if size is None else ModelSize(**size), "notes": tuple(found["notes"])})

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; `from_json` reads a file of it back."""
        return {"format": FORMAT, **asdict(self), "notes": list(self.notes)}

    def changed(self, **settings: Any) -> Recipe:
        """A recipe with other settings; those given as None stay."""
        return replace(self, **{name: value for name, value in settings.items() if value is not None})

    # --- what a model and data make of it ----------------------------------------------------------------------------

    def layers_of(self, n_layers: int) -> list[int]:
        """The layers to edit in a model of this depth: for another depth than the recipe's the same share, rounded up."""
        depth = n_layers if self.size is None else self.size.n_layers
        count = min(n_layers, math.ceil(self.last_layers * n_layers / depth))
        return list(range(n_layers - count, n_layers))

    def note_on_layers(self, n_layers: int) -> str | None:
        """What `layers_of` chose otherwise than the recipe says; None if nothing."""
        if self.size is None or n_layers == self.size.n_layers:
            return None
        count = len(self.layers_of(n_layers))
        return (
            f"This model has {n_layers} layers and the recipe's has {self.size.n_layers}: the last {count} are edited, the "
            f"same share of the depth as {self.last_layers} of {self.size.n_layers}, rounded up."
        )

    def read_demonstrations(self, path: str | Path, seed: int) -> Demonstrations:
        """The sample of a HaluEval or BBQ file, each question in the form `Q: ... A:`.

        Raises:
            FileFormatError: If the file is malformed.
            InputError: If it has fewer rows than the recipe asks for.
        """
        read = Demonstrations.from_halueval if self.behaviour == "truthfulness" else Demonstrations.from_bbq
        return read(path, self.n_demonstrations, seed).with_prompt_template(Q_AND_A)

    def read_questions(self, path: str | Path, seed: int, demonstrations: Demonstrations) -> Questions:
        """The questions of a TruthfulQA or BBQ file that are not among the demonstrations, all or a sample.

        Of BBQ those whose context tells the answer, as in the paper.

        Raises:
            FileFormatError: If the file is malformed.
            InputError: If no question is left.
        """
        if self.behaviour == "truthfulness":
            questions = Questions.from_truthfulqa(path)
        else:
            questions = Questions.from_bbq(path, context_condition="disambig", template=Q_AND_A)
        seen = {row.prompt for row in demonstrations}
        rows = tuple(row for row in questions if row.prompt not in seen)
        if not rows:
            raise InputError(
                f"Every question of {path} is among the demonstrations. Take fewer demonstrations, or other questions."
            )
        questions = replace(questions, rows=rows)
        return questions if self.n_questions is None else questions.sample(min(self.n_questions, len(rows)), seed)


FOLDER = Path(__file__).parent


def shipped_models() -> list[str]:
    """Short names of the models that recipes are shipped for."""
    ending = f"-{BEHAVIOURS[0]}.json"
    return sorted(path.name.removesuffix(ending) for path in FOLDER.glob(f"*{ending}"))


def _path(model: str, behaviour: str) -> Path:
    return FOLDER / f"{model}-{behaviour}.json"
