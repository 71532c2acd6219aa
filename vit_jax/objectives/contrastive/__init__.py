"""Contrastive objective (`Contrastive`) and its loss as a function (`contrastive_loss`)."""

from vit_jax.objectives.contrastive.loss import FORMS, LOSSES, contrastive_loss
from vit_jax.objectives.contrastive.objective import Contrastive

__all__ = ["FORMS", "LOSSES", "Contrastive", "contrastive_loss"]
