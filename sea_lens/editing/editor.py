"""An editor: one edit a layer, hooked into a model, with a card that says where it came from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, TypeVar

from huggingface_hub import ModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.cache import fingerprint
from sea_lens.editing.card import EditorCard
from sea_lens.editing.edits import Edit
from sea_lens.editing.files import fetch_editor_folder, read_editor_files, write_editor_files
from sea_lens.editing.where import CONTINUED_FROM, Positions, check_positions, describe_positions, keep_positions
from sea_lens.errors import HookNeverFiredError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.methods.sea.feature_space import FeatureMap
from sea_lens.methods.sea.published import FeatureFunction, Normalization, PublishedEdit, published_edits
from sea_lens.models.bridge import UNKNOWN_MODEL, FwdHook, Model, ModelDescription
from sea_lens.models.sites import Site, check_layers

ModelType = TypeVar("ModelType", bound=Model)
MODEL_CARD = """---
{{ card_data }}
---

An activation editor made with sea_lens (Spectral Editing of Activations,
[arXiv 2405.09719](https://arxiv.org/abs/2405.09719)).
What it was fitted on, and how, stands in `config.json` under `card`.

```python
import sea_lens as sl

editor = sl.Editor.from_pretrained("this/repository")
with editor.attached(model):  # a TransformerBridge of transformer_lens
    print(model.generate("..."))
```
"""


@dataclass(frozen=True, eq=False, repr=False)
class Editor(
    ModelHubMixin,
    library_name="sea_lens",
    tags=["activation-editing", "transformer-lens"],
    model_card_template=MODEL_CARD,
):
    """Edits by layer, immutable. Every view shares the tensors of the editor it is taken from.

    `editor[layer]` is that layer's edit, a function of any `[..., d_model]` tensor. Saving and loading go through
    `save_pretrained`, `from_pretrained` and `push_to_hub`, as on the Hugging Face hub: safetensors and JSON, nothing
    executable.

    Attributes:
        edits: By layer.
        card: Where they came from.
        positions: Which positions of a sequence are edited; None for all (the paper's choice).
    """

    edits: Mapping[int, Edit]
    card: EditorCard
    positions: Positions | None = None

    # Set here so that the hub mixin finds it and never writes to a frozen instance.
    _hub_mixin_config: ClassVar[dict[str, str]] = {"library_name": "sea_lens"}  # type: ignore[misc]

    def __post_init__(self) -> None:
        if not self.edits:
            raise InputError("An editor needs at least one layer, and no layer is left. Check the layers asked for.")
        widths = {layer: edit.d_model for layer, edit in self.edits.items()}
        if len(set(widths.values())) > 1:
            raise InputError(f"All edits of an editor must share one d_model; they have {widths}.")
        object.__setattr__(self, "edits", MappingProxyType(dict(sorted(self.edits.items()))))

    # --- what it is --------------------------------------------------------------------------------------------------

    def __getitem__(self, layer: int) -> Edit:
        if layer not in self.edits:
            raise ModelMismatchError(f"This editor has no layer {layer}; it edits layers {self.layers}.")
        return self.edits[layer]

    @property
    def layers(self) -> list[int]:
        """The layers it edits, ascending."""
        return list(self.edits)

    @property
    def d_model(self) -> int:
        """Width of the activations it edits."""
        return next(iter(self.edits.values())).d_model

    @property
    def n_layers(self) -> int:
        """Depth of the model it is for; for editors of unknown origin, up to their last layer."""
        return self.card.model.n_layers if self.card.model is not None else self.layers[-1] + 1

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing at any layer."""
        return all(edit.is_identity for edit in self.edits.values())

    @property
    def fingerprint(self) -> str:
        """Its method, and a digest of all that decides what it does: tensors, strengths, layers, positions and site."""
        return f"{self.card.method} {fingerprint(dict(self.edits), self.positions, self.card.site)}"

    def __repr__(self) -> str:
        origin = UNKNOWN_MODEL if self.card.model is None else self.card.model.name
        strengths = sorted({edit.strength for edit in self.edits.values()})
        where = "every position" if self.positions is None else "positions " + describe_positions(self.positions)
        head = (
            f"Editor({self.card.method}, fitted on {origin}, {self.card.site}, d_model {self.d_model}, {where}, "
            f"strength {', '.join(f'{strength:g}' for strength in strengths)})"
        )
        return "\n".join([head, *(f"  layer {layer:>2}: {self._line(layer)}" for layer in self.layers)])

    def _line(self, layer: int) -> str:
        found, text = self.card.layers.get(layer, {}), self.edits[layer].summary
        if "rank_positive" in found:
            text += f" (positive {found['rank_positive']}, negative {found['rank_negative']})"
        if "displacement" in found:
            text += (
                f", at strength 1 moves the fit's activations by {float(str(found['displacement'])):.1%} of their norm"
            )
        if "unit" in found:
            outside, beyond = (float(str(found[f"clamped_{what}"])) for what in ("activations", "features"))
            text += f", clamps {outside:.2%} of their entries and {beyond:.2%} of the edited features"
        return text

    def __reduce__(self) -> tuple[type[Editor], tuple[object, ...]]:
        return Editor, (dict(self.edits), self.card, self.positions)

    # --- views -------------------------------------------------------------------------------------------------------

    def at_layers(self, layers: Iterable[int]) -> Editor:
        """Only these layers.

        Raises:
            ModelMismatchError: If it does not edit one of them.
        """
        return replace(self, edits={layer: self[layer] for layer in layers})

    def without_layers(self, layers: Iterable[int]) -> Editor:
        """All layers but these.

        Raises:
            ModelMismatchError: If it does not edit one of them.
            InputError: If none is left.
        """
        dropped = {layer for layer in layers if self[layer] is not None}
        return replace(self, edits={layer: edit for layer, edit in self.edits.items() if layer not in dropped})

    def first_layers(self, n: int) -> Editor:
        """Those of its layers that are among the model's first `n`."""
        return self._within(range(self._count(n)))

    def last_layers(self, n: int) -> Editor:
        """Those of its layers that are among the model's last `n`; the paper edits the last 21 of 32."""
        return self._within(range(self.n_layers - self._count(n), self.n_layers))

    def _count(self, n: int) -> int:
        if not 1 <= n <= self.n_layers:
            raise InputError(f"{n} layers were asked for, and the model has {self.n_layers}. Ask for 1 to that.")
        return n

    def _within(self, layers: range) -> Editor:
        return replace(self, edits={layer: edit for layer, edit in self.edits.items() if layer in layers})

    def scaled(self, factor: float) -> Editor:
        """Every layer's strength multiplied by `factor`: 0 is the identity, 1 leaves it as it is."""
        return replace(self, edits={layer: edit.scaled(factor) for layer, edit in self.edits.items()})

    def at_positions(self, positions: Positions | Int[Tensor, "n_prompts prompt_length"]) -> Editor:
        """Edits only some positions of the prompt, and everything generated after it.

        With and without a KV cache the same tokens are edited: a pass over a single token is taken to go on where the
        last one ended, and positions beyond a mask were generated. Positions count columns, padding included. Passes of
        several tokens over a cached prefix are not supported, and `fwd_hooks()` are to be taken anew for each text.

        Args:
            positions: The first position to edit (`1` spares the first token, `prompt_length - 1` edits from the
                prompt's last token on), or a mask `[batch, pos]` over the tokens of a prompt batch.

        Raises:
            InputError: If the first position is negative: how far from the end it lies changes as text is generated.
        """
        return replace(self, positions=check_positions(positions))

    # --- at work -----------------------------------------------------------------------------------------------------

    def fwd_hooks(self) -> list[FwdHook]:
        """Hooks for `model.run_with_hooks(tokens, fwd_hooks=...)` or `model.hooks(fwd_hooks=...)`.

        These check d_model only; `attached` also checks depth, site and weight processing, and that a hook fired.
        """
        return [(Site(layer, self.card.site).hook_name, self._hook(layer, lambda: None)) for layer in self.layers]

    def _hook(self, layer: int, fired: Callable[[], None]) -> Callable[..., Tensor | None]:
        edit, positions = self.edits[layer], self.positions
        seen = 0  # tokens so far: a pass over a single token goes on where the last pass ended

        def hook(tensor: Float[Tensor, "batch pos d_model"], hook: object) -> Tensor | None:
            nonlocal seen
            length = tensor.shape[1]
            continued = CONTINUED_FROM.get()
            if continued is not None and isinstance(edit, PublishedEdit):
                raise InputError(
                    "By the published rule an edit depends on all tokens of a pass, so a common prefix cannot be run apart. "
                    "Score with share_prefix=False."
                )
            start = continued if continued is not None else seen if length == 1 else 0
            seen = start + length
            if not isinstance(positions, int) or positions < seen:
                fired()
            if edit.is_identity:
                return None
            edited = edit(tensor)
            return edited if positions is None else keep_positions(tensor, edited, positions, start)

        return hook

    def check(self, model: Model) -> None:
        """Checks that this editor fits a model.

        Raises:
            ModelMismatchError: If d_model, depth or weight processing differ from the model it was fitted on, or the
                model lacks a layer or the site.
        """
        theirs, ours = ModelDescription.of(model), self.card.model
        if theirs.d_model != self.d_model:
            raise ModelMismatchError(
                f"This editor is for d_model {self.d_model}, and {theirs.name} has d_model {theirs.d_model}. "
                "Fit an editor on this model."
            )
        check_layers(self.layers, theirs.n_layers)
        for layer in self.layers:
            Site(layer, self.card.site).check(model)
        if ours is None:
            return
        if ours.n_layers != theirs.n_layers:
            raise ModelMismatchError(
                f"This editor is for a model of {ours.n_layers} layers ({ours.name}), and {theirs.name} has "
                f"{theirs.n_layers}. Fit an editor on this model."
            )
        if ours.weights != theirs.weights:
            raise ModelMismatchError(
                f"This editor was fitted with {ours.weights} weights, and {theirs.name} has {theirs.weights} ones: "
                f"{self.card.site} holds other values then. Call enable_compatibility_mode() both when fitting and "
                "when editing, or neither time."
            )
        if ours.name not in (theirs.name, UNKNOWN_MODEL):
            warnings.warn(
                f"This editor was fitted on {ours.name} and is used on {theirs.name}.",
                SeaLensWarning,
                stacklevel=4,  # the with statement of `attached`
            )

    @contextmanager
    def attached(self, model: ModelType) -> Iterator[ModelType]:
        """Edits everything the model runs inside the `with` block, `generate` included.

        Contexts nest, and compose in the order they were entered; hooks of your own are left alone.

        Args:
            model: The model to edit.

        Yields:
            The same model.

        Raises:
            ModelMismatchError: If the editor does not fit the model (see `check`).
            HookNeverFiredError: On leaving, if no forward pass reached any of its hooks.
        """
        self.check(model)
        if self.is_identity and any(edit.strength for edit in self.edits.values()):
            warnings.warn(
                "This editor changes nothing at any layer: its positive and negative subspaces are the same. Fit another; "
                "fit_sea says what to try.",
                SeaLensWarning,
                stacklevel=3,
            )
        firings = dict.fromkeys(self.layers, 0)

        def count(layer: int) -> Callable[[], None]:
            def fired() -> None:
                firings[layer] += 1

            return fired

        hooks = [(Site(layer, self.card.site).check(model), self._hook(layer, count(layer))) for layer in self.layers]
        with model.hooks(fwd_hooks=hooks):
            yield model
        if not any(firings.values()):
            raise HookNeverFiredError(
                f"The editor was attached at {self.card.site} of layers {self.layers}, and no forward pass reached any"
                f"{'' if self.positions is None else ' at the positions chosen'}, so nothing was edited. Run the model "
                "inside the with block, and not with a stop_at_layer below them."
            )
        silent = [layer for layer, count_ in firings.items() if not count_]
        if silent:
            warnings.warn(
                f"The editor's hooks at layers {silent} never fired; the others did. Was the pass stopped early?",
                SeaLensWarning,
                stacklevel=3,
            )

    # --- on disk -----------------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path) -> None:
        if isinstance(self.positions, Tensor):
            raise InputError("This editor holds a position mask of one batch. Save the editor it was made from.")
        write_editor_files(save_directory, self.edits, self.card, self.positions)

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
        feature_map: FeatureMap | None = None,
    ) -> Editor:
        """Reads what `save_pretrained` or `push_to_hub` wrote.

        Args:
            pretrained_model_name_or_path: A folder, or a repository's name on the hub.
            force_download: Whether to download what is cached already.
            token: The hub's access token.
            cache_dir: Where downloads are kept.
            local_files_only: Whether to use only what is cached.
            revision: A branch, tag or commit.
            feature_map: The feature map of an editor that was fitted with one of your own: files hold no code.

        Raises:
            FileFormatError: If a file is missing, truncated, changed since it was written, or not an editor's, or if it
                names a feature map that is not the library's and none is given.
        """
        folder = fetch_editor_folder(
            str(pretrained_model_name_or_path), revision, cache_dir, force_download, local_files_only, token
        )
        return cls(*read_editor_files(folder, feature_map))

    @classmethod
    def from_published_projections(
        cls,
        positive: str | Path | Tensor,
        negative: str | Path | Tensor,
        layers: Iterable[int] | None = None,
        *,
        site: str = "mlp_out",
        normalization: Normalization = "token",
        feature_function: FeatureFunction | None = None,
        model: Model | None = None,
        progress: bool = True,
    ) -> Editor:
        """Makes an editor of the projections that the SEA authors' code writes and their release holds.

        Their dense `P+` and `P-` become low-rank factors, after a check that they are projectors; the ranks stand in the
        editor's repr and on its card.

        Args:
            positive: `uu_positive.pt`, or its tensor `[n_layers, d_model, d_model]`: `P+ = U U^T`.
            negative: `uu_negative.pt`: `P- = I - U U^T`.
            layers: Layers to edit; all in the file for None. (They edit the last 21 for truthfulness: `.last_layers(21)`.)
            site: Where to edit. Their code edits MLP outputs, with projections fitted on the residual stream.
            normalization: `"token"` restores each token's norm, as everywhere in this library. `"feature"` is their rule,
                for reproducing their numbers: each feature's norm over the positions of a pass. It is not causal, changes
                with the KV cache and with padding, and leaves nothing but signs of a single cached token.
            feature_function: With `"feature"`, the function whose published inverse is applied, for their non-linear runs.
            model: The model they are for, to check sizes against and to name on the card.
            progress: Whether to show a progress bar once it takes longer than two seconds.

        Raises:
            FileFormatError: If a file does not hold a tensor. No code is loaded from it.
            InputError: If shapes are wrong, or a matrix is not a projector (which layer, and how far from it).
            ModelMismatchError: If a layer does not exist, or the projections do not fit `model`.

        Warns:
            SeaLensWarning: With `normalization="feature"`, of what it does; if the files look exchanged.
        """
        return cls(*published_edits(positive, negative, layers, site, normalization, feature_function, model, progress))
