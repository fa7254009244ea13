"""DiKE's disentangler: a subject's state in two parts, one of the relation that is asked for and one of all others.

Source: Zhang et al. (ICLR 2026, arXiv 2505.18774), from its abstract and several notes: no code was found, and the paper
itself was not read here. Its weights `alpha`, `beta`, temperature, layer, learning rate and number of epochs are not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu

from sea_lens.arguments import as_folder, check_fields
from sea_lens.cache import load_tensors, save_tensors
from sea_lens.errors import FileFormatError, InputError

FORMAT = "sea_lens.disentangler/1"
NAMES = ("w1", "w2", "w3", "w4", "w5", "w6")

States = Float[Tensor, "*batch d_model"]


@dataclass(frozen=True, eq=False)
class Disentangler:
    """Takes a subject's state apart: `z_r` holds the relation of the prompt, `z_u` whatever else is known of the subject.

        z_r = GELU(W1 h_s + W2 h_r),   z_u = GELU(W3 h_s + W4 h_r),   h_s ~ W5 z_r + W6 z_u

    `h_s` is the layer's output at the subject's last token, `h_r` at the prompt's. GELU acts in
    units of `unit` (ours), so that the weights do not depend on how long a model's activations are.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> brief = sl.DisentanglerTraining(steps=2, facts=4)  # 300 steps by default
        >>> sl.train_disentangler(model, people.edits(8, "fitting"), layer=0, training=brief).save("krd.safetensors")
        >>> sl.Disentangler.load("krd.safetensors").layer
        0

    Attributes:
        weights: W1 to W6 as `w1` to `w6`, each `[d_model, d_model]`.
        layer: Whose output it reads.
        unit: The root mean square of the activations that it was trained on.
        numbers: What its training found, by name: the losses at the end, and `reconstruction`, the mean of
            `|h_s - W5 z_r - W6 z_u|^2 / |h_s|^2`.
    """

    weights: Mapping[str, Float[Tensor, "d_model d_model"]]
    layer: int
    unit: float = 1.0
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        shapes = {tuple(self.weights[name].shape) for name in NAMES if name in self.weights}
        if set(self.weights) != set(NAMES) or len(shapes) != 1 or not self.unit > 0:
            raise InputError(
                f"A disentangler has w1 to w6, all of one square shape, and a unit above zero; {sorted(self.weights)} of "
                f"shapes {sorted(shapes)} and {self.unit} were given."
            )

    def __repr__(self) -> str:
        told = "".join(f", {name} {value:.3g}" for name, value in self.numbers.items())
        return f"Disentangler(layer {self.layer}, width {self.width}{told})"

    @property
    def width(self) -> int:
        """Width of the states it takes apart."""
        return len(self.weights["w1"])

    @property
    def protected(self) -> Float[Tensor, "d_model d_model"]:
        """W3: what reads from a subject all that is not asked for. DiKE's edits keep values along its rows."""
        return self.weights["w3"]

    def related(self, subject: States, prompt: States) -> States:
        """`z_r`."""
        return self._part(subject, prompt, "w1", "w2")

    def unrelated(self, subject: States, prompt: States) -> States:
        """`z_u`."""
        return self._part(subject, prompt, "w3", "w4")

    def together(self, related: States, unrelated: States) -> States:
        """The subject's state out of both parts."""
        return related @ self.weights["w5"].T + unrelated @ self.weights["w6"].T

    def _part(self, subject: States, prompt: States, of_subject: str, of_prompt: str) -> States:
        inside = subject @ self.weights[of_subject].T + prompt @ self.weights[of_prompt].T
        part: Tensor = self.unit * gelu(inside / self.unit)
        return part

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file."""
        as_folder(path, "path")
        told = {"format": FORMAT, "layer": str(self.layer), "unit": float(self.unit).hex()}
        told |= {f"number.{name}": float(value).hex() for name, value in self.numbers.items()}
        save_tensors(dict(self.weights), Path(path), told)

    @classmethod
    def load(cls, path: str | Path) -> Disentangler:
        """What `save` wrote, to the bit.

        Raises:
            FileFormatError: If the file is missing, truncated or something else.
        """
        as_folder(path, "path")
        weights, told = load_tensors(Path(path))
        try:
            if told["format"] != FORMAT:
                raise KeyError(told["format"])
            numbers = {
                name.removeprefix("number."): float.fromhex(value)
                for name, value in told.items()
                if name.startswith("number.")
            }
            return cls(weights, int(told["layer"]), float.fromhex(told["unit"]), numbers)
        except (KeyError, ValueError, InputError) as error:
            raise FileFormatError(f"{path} does not hold a disentangler ({FORMAT}).") from error
