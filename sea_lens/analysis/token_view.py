"""What an edit does to one text, token by token: how far each layer moves it, and what the model then says next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from sea_lens.analysis.next_tokens import compared, lens_logits
from sea_lens.analysis.token_html import view_html, whole_page
from sea_lens.arguments import as_folder, check_arguments
from sea_lens.cache import write_text
from sea_lens.cells import cell_text
from sea_lens.data.chat import Message, chat_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import HookNeverFiredError, InputError
from sea_lens.models.branching import BranchingRuns, Unembedding
from sea_lens.models.bridge import FwdHook, Model, ModelInfo, tokenizer_of
from sea_lens.models.damage import Damage, measure_damage
from sea_lens.models.hooks import states_at
from sea_lens.models.passes import telling
from sea_lens.models.points import hooked
from sea_lens.models.sites import Site, named_sites
from sea_lens.models.tokens import PaddedTokens, TokenizedAnswer, check_context_length
from sea_lens.results import Result, readable, screen

Lens = Literal["next", "answer", "all", "none"]
"""Which positions are read through the layers: the prompt's last, that and all after it, every one, or none."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenView(Result):
    """What an edit does to the tokens of one text.

    Attributes:
        table: One row per position and layer, in the order of the text: the `token`; `displacement`, the length of the
            difference between the edited and the unedited residual stream after the layer; `share`, the same over the length
            of the unedited one; and `own`, the length by which the edits of this very layer move the token (NaN where the
            layer has none). A token that is edited at one layer stays moved at the next, and moves tokens after it.
        tokens: One row per position: the `token`, its `part` (`prompt` or `answer`), `share` after the last layer, `kl`, the
            KL(unedited || edited) of what comes after it, in nats, and how probable the token itself is after those before
            it, `unedited` and `edited`.
        predictions: The likeliest next tokens after each position, those of both models together: `next`, and its
            probability `unedited` and `edited`.
        lens: The same after each `layer`, by the logit lens: the residual stream through the final norm and the unembedding,
            as if the layers between were not there. Empty if none was asked for, or the model has no such reading.
        damage: What the edit costs on neutral text; None if it was not measured.
        model: The model's name.
        editor: The editor's method, sites and strength.
        where: Which tokens it edits.
        layers: The layers it edits.
        n_prompt: Tokens of the prompt.

    Example:
        >>> view = sl.view_tokens(model, "<plain> Q Mira home A", editor, damage=False)
        >>> view.n_prompt, view.layers
        (6, (0, 1, 2))
    """

    table: pd.DataFrame
    tokens: pd.DataFrame
    predictions: pd.DataFrame
    lens: pd.DataFrame
    damage: Damage | None
    model: str
    editor: str
    where: str
    layers: Sequence[int] = ()
    n_prompt: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def moved(self) -> int:
        """Tokens that the edit moves at any layer."""
        far = self.table["displacement"].ne(0).groupby(self.table["position"]).any()
        return int(far.sum())

    @property
    def finding(self) -> str:
        """What the edit does here, in words."""
        n = len(self.tokens)
        if not self.moved:
            return f"The edit moves none of these {n} tokens ({self.where}): here both models are one."
        if not math.isfinite(self.tokens["kl"].iloc[self.n_prompt - 1]):
            return f"{self.moved} of {n} tokens are moved, so far that activations overflow: the edited model predicts NaN."
        told = f"{self.moved} of {n} tokens are moved. {self._furthest} "
        before, after = self._likeliest("unedited"), self._likeliest("edited")
        kl = cell_text(float(self.tokens["kl"].iloc[self.n_prompt - 1]), 2)
        if before[0] == after[0]:
            told += f"After the prompt both say {before[0]!r} ({before[1]:.0%} unedited, {after[1]:.0%} edited)"
        else:
            told += f"After the prompt the unedited model says {before[0]!r} ({before[1]:.0%}), "
            told += f"the edited one {after[0]!r} ({after[1]:.0%})"
        return f"{told}; KL {kl} nats."

    @property
    def _furthest(self) -> str:
        """The token that is moved most after the last layer, as `tokens` has it, and where it is moved more."""
        place = int(self.tokens["share"].fillna(math.inf).to_numpy().argmax())
        row, last = self.tokens.iloc[place], int(self.table["layer"].max())
        own = self.table[self.table["position"] == row["position"]]
        peak = own.iloc[int(own["share"].fillna(math.inf).to_numpy().argmax())]
        told = f"After the last layer, {last}, it is {row['token']!r} (position {row['position']}) most, by "
        told += f"{row['share']:.0%} of its length"
        earlier = f"; after layer {peak['layer']} it was {peak['share']:.0%}" if peak["layer"] != last else ""
        return f"{told}{earlier}."

    def _likeliest(self, side: str) -> tuple[str, float]:
        rows = self.predictions[self.predictions["position"] == self.n_prompt - 1]
        best = rows.iloc[int(rows[side].fillna(-1).to_numpy().argmax())]
        return str(best["next"]), float(best[side])

    def save(self, folder: str | Path) -> list[Path]:
        """Writes one self-contained page for a name that ends in `.html`; for any other a folder that `load` reads.

        Args:
            folder: Where. The page needs no other file and asks for nothing on the network.

        Example:
            >>> view = sl.view_tokens(model, "Q: where does Dalia live? A:", editor, damage=False)
            >>> [path.name for path in view.save("dalia.html")]
            ['dalia.html']

        Returns:
            The files.
        """
        as_folder(folder)
        path = Path(folder)
        if path.suffix.lower() not in (".html", ".htm"):
            return super().save(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, whole_page(self))
        return [path]

    def _head(self) -> str:
        return f"TokenView({self.model}, {self.editor}, {self.where})"

    def __repr__(self) -> str:
        last = int(self.table["layer"].max())
        table = self.tokens.rename(columns={"kl": "KL", "share": f"share, layer {last}"}).reset_index(drop=True)
        shown = screen(readable(table.astype({"token": object}).assign(token=[repr(each) for each in table["token"]])))
        return "\n".join([self._head(), self.finding, *self._cost(), shown])

    def _cost(self) -> list[str]:
        return [] if self.damage is None else [f"Damage: {self.damage.summary}"]

    def _repr_html_(self) -> str:
        """For notebooks: the tokens, the heat map and the next tokens."""
        return view_html(self)


@torch.no_grad()
def view_tokens(
    model: Model,
    prompt: str | Sequence[Message],
    editor: Editor,
    *,
    answer: str = "",
    k: int = 5,
    lens: Lens = "answer",
    damage: bool = True,
    chat_options: Mapping[str, object] | None = None,
) -> TokenView:
    """Looks at one text under an edit: what moves, how far, and what the model says next, before and after.

    Both models read the same tokens. In a notebook the result is a page of its own: tokens in the color of how far they are
    moved, a map of tokens and layers, and the next tokens after each.

    Example:
        >>> view = sl.view_tokens(model, "Q: where does Dalia live? A:", editor)
        >>> len(view.table) == len(view.tokens) * model.cfg.n_layers
        True
        >>> path, *_ = view.save("dalia.html")

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        prompt: A text, or a conversation as a list of messages.
        editor: The editor.
        answer: A continuation that both models read as well, such as an answer of theirs.
        k: The likeliest next tokens of each model that are kept.
        lens: Where the logit lens reads all layers: `"next"` after the prompt, `"answer"` after each token of the answer as
            well, `"all"` after every token, `"none"` nowhere. Each layer costs two readings of the vocabulary per position.
        damage: Whether to measure what the edit costs on neutral text, as `measure_damage`.
        chat_options: Switches of the chat template, for a conversation.

    Returns:
        A result whose `table` has one row per position and layer, with how far the token moves, as a length and as a
        share of its own; `tokens` and `predictions` have what the model says next, before and after.

    Raises:
        InputError: If the text does not fit the model's context, or has no token.
        ModelMismatchError: If the editor does not fit the model.

    Warns:
        BrokenModelWarning: If the damage is measured and the edit breaks the model.
    """
    check_arguments(view_tokens, locals())
    editor.check(model)
    ids, n_prompt = _tokens(model, prompt, answer, chat_options)
    check_context_length(model, [len(ids)], ["The text"])
    if not 1 <= k <= model.cfg.d_vocab:
        raise InputError(f"k must be 1 to {model.cfg.d_vocab}, the tokens of the vocabulary; got {k}.")
    tokens = PaddedTokens.of(model, [ids], prompt_lengths=[n_prompt])
    plain, stream = _run(model, tokens)
    edited, moved, own = _run_edited(model, tokens, editor)
    names = [tokenizer_of(model).decode([token]) for token in ids]
    table = _displacements(names, stream, moved, own)
    both = (Unembedding(model).logits, plain), (BranchingRuns(model, [editor]).unembedding(0).logits, edited)
    found = compared(model, *both, k=k, said=ids)
    last = n_prompt - 1
    there = {"next": range(last, n_prompt), "answer": range(last, len(ids)), "all": range(len(ids)), "none": range(0)}
    shares = table[table["layer"] == model.cfg.n_layers - 1]["share"].tolist()
    each = {
        "position": range(len(ids)),
        "token": names,
        "part": ["prompt" if place < n_prompt else "answer" for place in range(len(ids))],
        "share": shares,
        "kl": found.kl,
        "unedited": found.said_unedited,
        "edited": found.said_edited,
    }
    strengths = sorted({edit.strength for edit in editor.edits.values()})
    return TokenView(
        table,
        pd.DataFrame(each),
        found.table(range(len(ids))),
        _through_layers(model, (stream, moved), k, there[lens]),
        measure_damage(model, [], editor, examples=0) if damage else None,
        model=ModelInfo.of(model).name,
        editor=f"{editor.card.method}, {named_sites(editor.sites)}, strength {', '.join(f'{s:g}' for s in strengths)}",
        where="every token" if editor.where is None else str(editor.where),
        layers=tuple(editor.layers),
        n_prompt=n_prompt,
    )


def _tokens(
    model: Model, prompt: str | Sequence[Message], answer: str, chat_options: Mapping[str, object] | None
) -> tuple[list[int], int]:
    """All tokens, and how many of them are the prompt's."""
    is_chat = not isinstance(prompt, str) or type(prompt) is not str
    if chat_options and not is_chat:
        raise InputError('chat_options are for conversations. Give [{"role": "user", "content": prompt}].')
    text = chat_text(model, prompt, options=chat_options) if is_chat else str(prompt)
    whole = TokenizedAnswer.of(model, text, answer)
    if not whole.ids or not whole.answer_start:
        raise InputError(f"The prompt {text!r:.60} comes out as no tokens at all. Give it at least one.")
    return whole.ids, whole.answer_start


def _run(model: Model, tokens: PaddedTokens) -> tuple[Tensor, Tensor]:
    """What the unembedding reads, `[pos, width]`, and the residual stream after every layer, `[layer, pos, d_model]`."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> FwdHook:
        def look(tensor: Tensor, hook: object) -> None:
            kept[layer] = tensor[0].detach().float()

        return Site(layer).hook_name, look

    layers = range(model.cfg.n_layers)
    with telling(model, tokens.prompt_lengths):
        states = states_at(model, tokens, tokens.mask, [keep(layer) for layer in layers])
    return states, torch.stack([kept[layer].to(kept[0].device) for layer in layers])


def _run_edited(model: Model, tokens: PaddedTokens, editor: Editor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """The same under an editor, and by layer the length by which its own edits there move each token."""
    before: dict[Site, Tensor] = {}
    own: dict[int, Tensor] = {}

    def remember(site: Site) -> FwdHook:
        def look(tensor: Tensor, hook: object) -> None:
            before[site] = site.read(tensor)[0].detach().float()

        return site.hook_name, look

    def measure(site: Site) -> FwdHook:
        def look(tensor: Tensor, hook: object) -> None:
            step = (site.read(tensor)[0].detach().float() - before[site]).norm(dim=-1).double().cpu()
            if site.layer is not None:
                own[site.layer] = torch.hypot(own[site.layer], step) if site.layer in own else step

        return site.hook_name, look

    # Hooks act in the order in which they come: one before the editor's, one after.
    before_it, after_it = (list(map(look, editor.sites)) for look in (remember, measure))
    with hooked(model, before_it), suppress(HookNeverFiredError), editor.attached(model), hooked(model, after_it):
        states, stream = _run(model, tokens)
    return states, stream, own


def _displacements(names: Sequence[str], plain: Tensor, moved: Tensor, own: Mapping[int, Tensor]) -> pd.DataFrame:
    length = plain.norm(dim=-1).double().cpu()
    far = (moved - plain).norm(dim=-1).double().cpu()
    layers, n = far.shape
    none = torch.full((n,), float("nan"), dtype=torch.float64)
    steps = torch.stack([own.get(layer, none) for layer in range(layers)])
    return pd.DataFrame(
        {
            "position": [place for place in range(n) for _ in range(layers)],
            "token": [name for name in names for _ in range(layers)],
            "layer": list(range(layers)) * n,
            "displacement": far.T.flatten().tolist(),
            "share": (far / length).T.flatten().tolist(),
            "own": steps.T.flatten().tolist(),
        }
    )


def _through_layers(model: Model, streams: Sequence[Tensor], k: int, there: range) -> pd.DataFrame:
    """What the logit lens reads after each layer at some positions; an empty table where it cannot."""
    read = lens_logits(model)
    if read is None or not there:
        return pd.DataFrame()
    plain, moved = (each[:, list(there)].flatten(0, 1) for each in streams)
    table = compared(model, (read, plain), (read, moved), k=k).table(range(len(plain)))
    table.insert(0, "layer", table["position"] // len(there))
    table["position"] = there.start + table["position"] % len(there)
    return table.sort_values(["position", "layer"], kind="stable", ignore_index=True)
