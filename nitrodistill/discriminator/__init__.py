"""The discriminator: heads on a network's features, what they are shown, and heads on the disk."""

from __future__ import annotations

from nitrodistill.discriminator.augmentation import Augmentation
from nitrodistill.discriminator.discriminator import Conditioned, LatentDiscriminator
from nitrodistill.discriminator.game import AdversarialGame, Noising
from nitrodistill.discriminator.heads import (
    ConvHead,
    DiscriminatorHeads,
    MakeHead,
    MLPHead,
    ProjectableHead,
    TokenHead,
    named_head,
)

__all__ = [
    "AdversarialGame",
    "Augmentation",
    "Conditioned",
    "ConvHead",
    "DiscriminatorHeads",
    "LatentDiscriminator",
    "MLPHead",
    "MakeHead",
    "Noising",
    "ProjectableHead",
    "TokenHead",
    "named_head",
]
