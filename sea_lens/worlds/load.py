"""Loads the embedded models: small, really trained, and of worlds whose truth is known. See README.md here."""

from __future__ import annotations

from pathlib import Path

import torch

from sea_lens.arguments import check_arguments
from sea_lens.data.fact_files import NAMED_FACTS
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.models.loading import register_model
from sea_lens.models.neutral import register_neutral_texts
from sea_lens.sae.load import NAMED as NAMED_SAES
from sea_lens.worlds.bias import BiasWorld
from sea_lens.worlds.facts import World
from sea_lens.worlds.knowledge import KnowledgeWorld

WEIGHTS = Path(__file__).parent / "weights"
NAME = "sea-lens-organism"
BIAS_WEIGHTS = Path(__file__).parent / "bias_weights"
BIAS_NAME = "sea-lens-bias-organism"
KNOWLEDGE_WEIGHTS = Path(__file__).parent / "knowledge_weights"
KNOWLEDGE_NAME = "sea-lens-knowledge-organism"
SAE_WEIGHTS = Path(__file__).parent / "sae"
NAMED_SAES["organism"] = SAE_WEIGHTS
NAMED_FACTS["knowledge-organism"] = lambda: KnowledgeWorld.from_json(KNOWLEDGE_WEIGHTS / "facts.json").edits()


def load_organism(device: str | torch.device = "cpu", folder: str | Path = WEIGHTS) -> tuple[Model, World]:
    """Loads the embedded model and its world of truths and myths, offline.

    Args:
        device: Where to put the model.
        folder: Another seed's folder, as `python -m experiments.worlds.train` writes it.

    Returns:
        A TransformerBridge of 4 layers and d_model 128, and its facts.

    Example:
        >>> model, world = sl.load_organism()
        >>> model.cfg.n_layers, world
        (4, World(240 fitting facts, 240 held-out facts))
    """
    check_arguments(load_organism, locals())
    model, world = _load_model(device, folder, NAME), World.from_json(Path(folder) / "facts.json")
    register_neutral_texts(model, world.neutral_texts())
    return model, world


def load_bias_organism(
    device: str | torch.device = "cpu", folder: str | Path = BIAS_WEIGHTS
) -> tuple[Model, BiasWorld]:
    """Loads the embedded model that has a bias, and its world of stereotypes, offline.

    Args:
        device: Where to put the model.
        folder: Another seed's folder, as `python -m experiments.worlds.train --world bias` writes it.

    Returns:
        A TransformerBridge of 4 layers and d_model 128, and its topics.

    Example:
        >>> model, groups = sl.load_bias_organism()
        >>> model.cfg.n_layers, groups
        (4, BiasWorld(48 fitting topics, 48 held-out topics))
    """
    check_arguments(load_bias_organism, locals())
    model, world = _load_model(device, folder, BIAS_NAME), BiasWorld.from_json(Path(folder) / "topics.json")
    register_neutral_texts(model, world.neutral_texts())
    return model, world


def load_knowledge_organism(
    device: str | torch.device = "cpu", folder: str | Path = KNOWLEDGE_WEIGHTS
) -> tuple[Model, KnowledgeWorld]:
    """Loads the embedded model that knows facts in five wordings each, and its world, offline. For editing knowledge.

    Args:
        device: Where to put the model.
        folder: Another seed's folder, as `python -m experiments.worlds.train --world knowledge` writes it.

    Returns:
        A TransformerBridge of 4 layers and d_model 128, and what is true.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> model.cfg.n_layers, people
        (4, KnowledgeWorld(240 fitting facts, 400 held-out facts))
    """
    check_arguments(load_knowledge_organism, locals())
    model = _load_model(device, folder, KNOWLEDGE_NAME)
    world = KnowledgeWorld.from_json(Path(folder) / "facts.json")
    register_neutral_texts(model, world.neutral_texts())
    return model, world


@register_model("organism")
def _organism(device: str | torch.device = "cpu") -> Model:
    return load_organism(device)[0]


@register_model("bias-organism")
def _bias_organism(device: str | torch.device = "cpu") -> Model:
    return load_bias_organism(device)[0]


@register_model("knowledge-organism")
def _knowledge_organism(device: str | torch.device = "cpu") -> Model:
    return load_knowledge_organism(device)[0]


def _load_model(device: str | torch.device, folder: str | Path, name: str) -> Model:
    # Imported late: transformer_lens takes seconds to import, which `import sea_lens` need not cost.
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging

    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Model = TransformerBridge.boot_transformers(str(folder), device=torch.device(device))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The embedded model could not be loaded from {folder} on {device}: {error}. Give the folder that "
            "experiments.worlds.train wrote, and a device of torch."
        ) from error
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    model.cfg.model_name = name
    return model
