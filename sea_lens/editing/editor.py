"""An editor: edits by site, hooked into a model, with a card that says where they came from."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from huggingface_hub import ModelHubMixin
from torch import nn

from sea_lens.arguments import as_folder, check_arguments
from sea_lens.cache import digest
from sea_lens.editing.card import EditorCard
from sea_lens.editing.combine import card_of_both, edits_in_sequence, in_order, summary_of
from sea_lens.editing.edits import Edit
from sea_lens.editing.files import MODEL_CARD, fetch_editor_folder, read_editor_files, words_of_card, write_editor_files
from sea_lens.editing.fits import check_fits, check_has_points
from sea_lens.editing.hooks import EditHooks, edited
from sea_lens.editing.sparing import in_common, placed
from sea_lens.editing.strength import strength_for
from sea_lens.editing.where import Both, Positions, Where
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.bridge import FwdHook, Model
from sea_lens.models.damage import DamageMeter
from sea_lens.models.sites import Site, check_count, choose_site, choose_sites

ModelType = TypeVar("ModelType", bound=Model | nn.Module)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Editor(
    ModelHubMixin,
    library_name="sea_lens",
    tags=["activation-editing", "transformer-lens"],
    model_card_template=MODEL_CARD,
):
    """Edits by site, immutable. Every view shares the tensors of the editor it is taken from.

    `editor[layer]` is that layer's edit, a function of any `[..., width]` tensor. Saving and loading go through
    `save_pretrained`, `from_pretrained` and `push_to_hub`, as on the Hugging Face hub: safetensors and JSON, nothing
    executable. Editors combine: `truthful + fair`, `-editor`, `2 * editor`.

    Example:
        >>> gentle = editor.first_layers(2).scaled(0.5).at_positions("generated")
        >>> gentle.layers, gentle[0].strength, str(gentle.where)
        ([0, 1], 1.0, 'generated tokens only')

    Attributes:
        edits: By site; integers are layers of `resid_post`, and hook names are read in either form of TransformerLens.
        card: Where they came from.
        where: Which tokens are edited; None for all.
    """

    edits: Mapping[Site, Edit]
    card: EditorCard
    where: Where | None

    # Set here so that the hub mixin finds it and never writes to a frozen instance.
    _hub_mixin_config: ClassVar[dict[str, str]] = {"library_name": "sea_lens"}  # type: ignore[misc]

    def __init__(
        self,
        edits: Mapping[Site, Edit] | Mapping[int, Edit] | Mapping[str, Edit],
        card: EditorCard | None = None,
        where: Where | None = None,
    ) -> None:
        """From edits by site.

        Raises:
            InputError: If there are none, their widths differ at one site, or a condition reads a site after them.
        """
        check_arguments(Editor.__init__, locals())
        kept = {
            "edits": MappingProxyType(in_order(edits, where)),
            "card": card or EditorCard("by hand"),
            "where": where,
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    def __getitem__(self, site: Site | int | str) -> Edit:
        return self.edits[choose_site(self.edits, site, self.n_layers)]

    @property
    def sites(self) -> list[Site]:
        """The sites it edits, as a pass comes to them."""
        return list(self.edits)

    @property
    def layers(self) -> list[int]:
        """The layers it edits, ascending. A site outside the blocks has none."""
        return sorted({site.layer for site in self.edits if site.layer is not None})

    @property
    def width(self) -> int:
        """Width of the activations it edits, at its first site."""
        return next(iter(self.edits.values())).width

    @property
    def n_layers(self) -> int:
        """Depth of the model it is for; for editors of unknown origin, up to their last layer."""
        return self.card.model.n_layers if self.card.model is not None else max(self.layers, default=-1) + 1

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing at any site."""
        return all(edit.is_identity for edit in self.edits.values())

    @property
    def token_local(self) -> bool:
        """Whether texts may be run in parts and rows in batches: edits look at single tokens and their position."""
        return all(edit.token_local for edit in self.edits.values()) and (self.where is None or self.where.token_local)

    @property
    def fingerprint(self) -> str:
        """Its method, and a digest of all that decides what it does: tensors, strengths, sites and where."""
        return f"{self.card.method} {digest({str(site): edit for site, edit in self.edits.items()}, self.where)}"

    def __repr__(self) -> str:
        return summary_of(self.edits, self.card, self.where)

    def __reduce__(self) -> tuple[type[Editor], tuple[object, ...]]:
        return Editor, (dict(self.edits), self.card, self.where)

    def at_layers(self, layers: Iterable[int | str | Site]) -> Editor:
        """Only these layers; -1 is the model's last. A hook name or a `Site` chooses one site of a layer.

        Raises:
            ModelMismatchError: If it does not edit one of them.
        """
        chosen = choose_sites(self.edits, layers, self.n_layers)
        return replace(self, edits={site: self.edits[site] for site in chosen})

    def without_layers(self, layers: Iterable[int | str | Site]) -> Editor:
        """All layers but these.

        Raises:
            ModelMismatchError: If it does not edit one of them.
            InputError: If none is left.
        """
        dropped = choose_sites(self.edits, layers, self.n_layers)
        return replace(self, edits={site: edit for site, edit in self.edits.items() if site not in dropped})

    def first_layers(self, n: int) -> Editor:
        """Those of its layers that are among the model's first `n`: `first_layers(3)` keeps layers 0 to 2."""
        return self._within(range(check_count(n, self.n_layers)))

    def last_layers(self, n: int) -> Editor:
        """Those of its layers that are among the model's last `n`; the paper edits the last 21 of 32."""
        return self._within(range(self.n_layers - check_count(n, self.n_layers), self.n_layers))

    def _within(self, layers: range) -> Editor:
        return replace(self, edits={site: edit for site, edit in self.edits.items() if site.layer in layers})

    def scaled(self, factor: float) -> Editor:
        """Every strength multiplied by `factor`: 0 is the identity, 1 leaves it as it is, -1 turns it around."""
        check_arguments(Editor.scaled, locals())
        return replace(self, edits={site: edit.scaled(factor) for site, edit in self.edits.items()})

    def scaled_to(
        self, model: Model, texts: Sequence[str] | None = None, *, kl: float = 0.1, batch_size: int = 16
    ) -> Editor:
        """Scaled to a damage of your choice: edits compound over layers, so one strength does different things in two models.

        Example:
            >>> gentle = editor.scaled_to(model, kl=0.1)
            >>> 0.097 <= sl.measure_damage(model, [], gentle).kl <= 0.103
            True

        Args:
            model: A TransformerBridge with a tokenizer, unedited.
            texts: Texts to measure on, 128 tokens of each; None for `sl.neutral_texts(model)`.
            kl: Mean over tokens of KL(unedited || edited) of next-token distributions, in nats, to 3 %.
            batch_size: Texts in one forward pass.

        Raises:
            InputError: If the editor changes nothing on these texts, or no strength up to 1024 times its own has this KL.
        """
        check_arguments(Editor.scaled_to, locals())
        self.check(model)
        meter = DamageMeter.of(model, (), texts, batch_size=batch_size)
        return self.scaled(strength_for(lambda factor: meter.measure(self.scaled(factor)).kl, kl))

    def at_positions(self, positions: Positions) -> Editor:
        """The same edits at some tokens only. Positions are true ones: padding is not counted, and a KV cache is.

        An editor that spares attention sinks spares them at any positions but `"all"`, which are all tokens there are.

        Example:
            >>> str(editor.at_positions(1).where), str(editor.at_positions("generated").where)
            ('positions from 1 on', 'generated tokens only')

        Args:
            positions: The first position to edit; a slice; a list; `"prompt"`, `"generated"`, `"not first"` or `"all"`;
                or a mask `[batch, pos]` over the columns of one batch of prompts, padding included, with everything
                generated after it. Negative positions count from the end of the prompt. The prompt is what `generate`
                is given, and what questions and benchmarks put before an answer; all of a text that is run at once.

        Raises:
            InputError: If they are something else.
        """
        return replace(self, where=placed(self.where, positions))

    def when(self, condition: Where) -> Editor:
        """The same edits, only in texts whose prompt meets a condition, at the positions chosen before.

        Args:
            condition: Such as `sea_lens.WhenAligned(site, direction, threshold)`.

        Raises:
            InputError: If there is a condition already, or it reads a site after the first edit.
        """
        check_arguments(Editor.when, locals())
        return replace(self, where=condition if self.where is None else Both(self.where, condition))

    def __add__(self, other: Editor) -> Editor:
        """This editor and then the other. At a site of both, affine edits that restore no norm become one.

        Raises:
            InputError: If they edit different tokens.
        """
        if not isinstance(other, Editor):
            return NotImplemented
        where, card = in_common(self.where, other.where), card_of_both(self.card, other.card)
        return Editor(edits_in_sequence(self.edits, other.edits), card, where)

    def __neg__(self) -> Editor:
        """Every strength with its sign changed."""
        return self.scaled(-1.0)

    def __mul__(self, factor: object) -> Editor:
        """`scaled(factor)`."""
        return self.scaled(float(factor)) if isinstance(factor, int | float) else NotImplemented

    __rmul__ = __mul__

    def fwd_hooks(self, model: Model | None = None) -> list[FwdHook]:
        """Hooks for `model.run_with_hooks(tokens, fwd_hooks=...)` or `model.hooks(fwd_hooks=...)`. A list serves many passes.

        A hook sees one tensor, and not what the model was called with. So hooks alone know neither padding nor cache:
        they take columns for positions, and all of a pass for its prompt. That is exact for an editor of every
        position, and for whole texts without padding on the left. A pass over one token may begin a text or go on with
        one: an editor with positions refuses it. With `model`, hooks are exact for every caller: the model's passes are
        tracked while the list lives.

        Args:
            model: The model they are for; checked if given.

        Raises:
            ModelMismatchError: If the editor does not fit `model`, or it is a plain Hugging Face model.
        """
        if model is None:
            return EditHooks(self).hooks()
        check_has_points(model)
        self.check(model)
        return EditHooks(self, tracking=model).hooks()

    def check(self, model: Model | nn.Module) -> None:
        """Checks that this editor fits a model: a TransformerBridge, or a plain Hugging Face one.

        Raises:
            ModelMismatchError: If width, depth or weight processing differ from the model it was fitted on, or the
                model lacks a layer or the site.
        """
        check_fits(self.edits, self.where, self.card.model, model)

    @contextmanager
    def attached(self, model: ModelType) -> Iterator[ModelType]:
        """Edits everything the model runs inside the `with` block, `generate` included.

        Contexts nest, and compose in the order they were entered; hooks of your own are left alone.

        A plain Hugging Face model is edited at the same places by PyTorch's hooks, so its `generate`, a `pipeline` or a
        `Trainer` run it edited. `sl.Editor.from_pretrained(folder).attached(hf_model)` needs no TransformerLens.

        Example:
            >>> with editor.attached(model):
            ...     print(sl.generate(model, "<plain> Q Mira home A", max_new_tokens=1))
            Quito

        Args:
            model: The model to edit: a TransformerBridge, or a plain Hugging Face model.

        Yields:
            The same model.

        Raises:
            ModelMismatchError: If the editor does not fit the model (see `check`).
            HookNeverFiredError: On leaving, if no forward pass reached any of its hooks.
        """
        self.check(model)
        if self.is_identity and any(edit.strength for edit in self.edits.values()):
            what = f"This editor of {self.card.method!r} changes nothing at any layer."
            warnings.warn(f"{what} Fit it with other settings, demonstrations or token.", SeaLensWarning, stacklevel=3)
        with edited(model, self):
            yield model

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes the editor's two files and a model card; `options` are those of Hugging Face's `ModelHubMixin`.

        Returns:
            The commit's address where `push_to_hub=True` is among them; else None.

        Raises:
            InputError: If the folder cannot be one.
        """
        as_folder(save_directory, "save_directory")
        if Path(save_directory).is_file():
            raise InputError(f"{save_directory} is a file. Give the name of a folder.")
        given = options.pop("model_card_kwargs", None) or {}
        told = words_of_card(self.card, self.edits, Path(save_directory)) | given
        return super().save_pretrained(save_directory, model_card_kwargs=told, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_editor_files(save_directory, self.edits, self.card, self.where)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's takes any further keyword, and reads config.json itself
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Editor:
        """The editor that `save_pretrained` or `push_to_hub` wrote, by this version or 0.1.

        Args:
            pretrained_model_name_or_path: A folder, or a repository's name on the hub.
            force_download: Whether to download what is cached already.
            token: The hub's access token.
            cache_dir: Where downloads are kept.
            local_files_only: Whether to use only what is cached.
            revision: A branch, tag or commit.

        Raises:
            FileFormatError: If a file is missing, truncated, changed since it was written, or not an editor's, or if it
                holds an edit or a value whose class is not registered here.
        """
        folder = fetch_editor_folder(
            str(pretrained_model_name_or_path), revision, cache_dir, force_download, local_files_only, token
        )
        return cls(*read_editor_files(folder))
