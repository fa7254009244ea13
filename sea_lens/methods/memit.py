"""MEMIT: many facts changed at once by small edits of several MLPs, in closed form.

Source: Meng, Sen Sharma, Andonian, Belinkov and Bau, *Mass-Editing Memory in a Transformer* (ICLR 2023, arXiv 2210.07229), by
the authors' code (`kmeng01/memit`: `memit/memit_main.py`, `memit/compute_z.py`, `rome/layer_stats.py`, read at b86d971). Its
hyperparameters by model are from notes on that code's `hparams`. The paper's numbers are not verified here.

Departures: prefixes are the beginnings of neutral texts, not sampled from the model; the moment of keys is taken on texts
that you give, or on a small sample, and not on 100,000 texts of Wikipedia, so there is a ridge; and its weight is by default
the width of a key, as a published one fits the models of one size only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sea_lens.arguments import check_arguments
from sea_lens.data.facts import FactEdit
from sea_lens.editing.editor import Editor
from sea_lens.methods.fact_method import EditsFacts, Prepared
from sea_lens.methods.keyed_fit import Weighing
from sea_lens.methods.method import register_method
from sea_lens.methods.values import Start
from sea_lens.models.bridge import Model
from sea_lens.models.key_moments import KeyMoments


@register_method("memit", source="Meng et al., ICLR 2023, arXiv 2210.07229")
@dataclass(frozen=True)
class MEMIT(EditsFacts):
    """Changes facts: adds to MLPs what makes the model say new objects, where it reads the subjects' keys.

    For each fact, gradients find the value v that the last edited layer should hold at the subject's last token for the model
    to say the new object. Then, layer by layer, `W + R K^T (lam E[k k^T] + K K^T)^-1`: K the keys of the subjects, R the part
    of what is missing to v that is this layer's share.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> fact = people.edits(2)[1]
        >>> edited = sl.MEMIT(layers=(0,), clamp=4.0, essence=None).fit_facts(model, [fact])
        >>> with edited.attached(model):  # or sl.WeightEdit(edited).attached(model)
        ...     said = sl.generate(model, fact.text, max_new_tokens=1)
        >>> edited.sites[0].hook_name
        'blocks.0.hook_mlp_out'

    Attributes:
        layers: As in `EditsFacts`, and so are the others.
    """

    when_to_use: ClassVar[str] = "Facts are to change, one or thousands at once, for good and in all contexts."
    equation: ClassVar[str] = "W + R K^T (lambda E[k k^T] + K K^T)^-1"

    def fit_facts(
        self,
        model: Model,
        facts: Sequence[FactEdit],
        *,
        texts: Sequence[str] | None = None,
        moments: KeyMoments | None = None,
        batch_size: int = 32,
        progress: bool = True,
    ) -> Editor:
        """The editor of some facts, all at once.

        Args:
            model: A TransformerBridge with a tokenizer, unedited.
            facts: The facts; two must not contradict each other.
            texts: Neutral texts, for prefixes and the moment of keys; None for `sl.neutral_texts(model)`.
            moments: The moment of keys, where it is known (`sl.collect_key_moments`): it is the same for all facts.
            batch_size: Rows in one forward pass.
            progress: Whether to show progress bars.

        Returns:
            An editor with one keyed edit for each layer. The card says of each what its keys reached (`reached`), how much of
            the residual's length is kept (`kept`), and how much an edit reads on neutral tokens (`read_50`, `read_99`,
            `read_most`; 1 is what it is fitted to at a weight of 0).

        Raises:
            InputError: If there are no facts, two contradict each other, the model carries editors, or the covariance of keys
                is singular.
            ModelMismatchError: If the model is a mixture of experts, or lacks a layer.
        """
        check_arguments(MEMIT.fit_facts, locals())
        found = Prepared.of(self, model, facts, texts=texts, moments=moments, batch_size=batch_size, progress=progress)
        return found.editor(self, Start(found.states), Weighing(found.moments, self.moment_weight, self.ridge))
