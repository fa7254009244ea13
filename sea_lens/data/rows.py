"""Rows that each hold a prompt: what demonstrations and questions have in common."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, overload

from sea_lens.cache import write_text
from sea_lens.errors import InputError
from sea_lens.models.bridge import Tokenizer


@dataclass(frozen=True)
class PromptRow:
    """One row, of which no more is known than its prompt."""

    prompt: str


RowT = TypeVar("RowT", bound=PromptRow)
RowsT = TypeVar("RowsT", bound="PromptRows")  # type: ignore[type-arg]


@dataclass(frozen=True)
class PromptRows(Sequence[RowT], Generic[RowT]):
    """An immutable list of rows with prompts; every method returns a new one.

    Attributes:
        rows: The rows.
        source: Where they came from, for messages and cards.
    """

    called: ClassVar[str] = "rows"

    rows: tuple[RowT, ...]
    source: str = "lists"

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError(f"There are no {self.called} in {self.source}. At least one row is needed.")

    def to_jsonl(self, path: str | Path) -> None:
        """Writes one JSON object a line; `from_jsonl` reads it back."""
        rows = [{name: value for name, value in asdict(row).items() if value is not None} for row in self.rows]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(Path(path), "".join(lines))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[RowT]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> RowT: ...

    @overload
    def __getitem__(self: RowsT, index: slice) -> RowsT: ...

    def __getitem__(self, index: int | slice) -> Any:
        return replace(self, rows=self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def sample(self: RowsT, n: int, seed: int) -> RowsT:
        """`n` rows drawn without replacement.

        Raises:
            InputError: If `n` is not between 1 and the number of rows.
        """
        if not 1 <= n <= len(self):
            raise InputError(f"{n} {self.called} were asked for and {self.source} has {len(self)}. Ask for 1 to that.")
        return replace(self, rows=tuple(random.Random(seed).sample(self.rows, n)))

    def split(self: RowsT, fraction: float, seed: int) -> tuple[RowsT, RowsT]:
        """Two disjoint parts, the first with `fraction` of the prompts; rows with one prompt stay on one side.

        Raises:
            InputError: If either part would be empty.
        """
        prompts = list(dict.fromkeys(row.prompt for row in self.rows))
        random.Random(seed).shuffle(prompts)
        first = set(prompts[: round(fraction * len(prompts))]) if 0 < fraction < 1 else set()
        parts = [tuple(row for row in self.rows if (row.prompt in first) is inside) for inside in (True, False)]
        if not all(parts):
            raise InputError(
                f"Splitting {len(prompts)} different prompts at {fraction} leaves a part empty. "
                "Use a fraction strictly between 0 and 1 that leaves at least one prompt on each side."
            )
        return replace(self, rows=parts[0]), replace(self, rows=parts[1])

    def with_prompt_template(self: RowsT, template: str) -> RowsT:
        r"""Puts each prompt into a template such as `"Q: {question}\nA:"` (`{prompt}` means the same).

        Raises:
            InputError: If the template does not hold one of the two exactly once; other braces stay as they are.
        """
        fields = [field for field in ("{question}", "{prompt}") if field in template]
        if len(fields) != 1 or template.count(fields[0]) != 1:
            raise InputError(
                f"A prompt template holds {{question}} (or {{prompt}}) exactly once, and {template!r} does not."
            )
        before, after = template.split(fields[0])
        return self._with_prompts(lambda prompt: before + prompt + after)

    def with_chat_template(self: RowsT, tokenizer: Tokenizer, system: str | None = None) -> RowsT:
        """Puts each prompt into the tokenizer's own chat template, up to where the assistant's answer begins.

        Templates that write the beginning-of-sequence token are safe: it is never added a second time.

        Args:
            tokenizer: A tokenizer with a chat template, such as `model.tokenizer`.
            system: A system message, for templates that take one.

        Raises:
            InputError: If the tokenizer has no chat template, or its template refuses the system message.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("This tokenizer has no chat template. Use with_prompt_template(...) instead.")
        opening = [] if system is None else [{"role": "system", "content": system}]

        def chat(prompt: str) -> str:
            try:
                return tokenizer.apply_chat_template(
                    [*opening, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # templates raise jinja2 errors of their own making
                raise InputError(f"The chat template refused these messages: {error}") from error

        return self._with_prompts(chat)

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over all texts, in order."""
        digest = hashlib.sha256(b"[")  # of the rows as one JSON list, of which no more than a row is made at a time
        for number, row in enumerate(self.rows):
            digest.update(((", " if number else "") + json.dumps(asdict(row), ensure_ascii=False)).encode())
        digest.update(b"]")
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} from {self.source}; first: {self.rows[0]!r})"

    def _with_prompts(self: RowsT, change: Callable[[str], str]) -> RowsT:
        return replace(self, rows=tuple(replace(row, prompt=change(row.prompt)) for row in self.rows))
