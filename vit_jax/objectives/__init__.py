"""Objectives: the loss that a run minimises, one file per loss."""

from vit_jax.components import Registry
from vit_jax.objectives.base import Batch, Context, Metrics, Objective

OBJECTIVES = Registry(
    "objective",
    {
        "captioning": "vit_jax.objectives.captioning:Captioning",
        "contrastive": "vit_jax.objectives.contrastive:Contrastive",
        "contrastive_captioning": (
            "vit_jax.objectives.contrastive_captioning:ContrastiveCaptioning"
        ),
        "contrastive_distillation": (
            "vit_jax.objectives.contrastive_distillation:ContrastiveDistillation"
        ),
        "classification": "vit_jax.objectives.classification:Classification",
        "clipseg": "vit_jax.objectives.clipseg:CLIPSeg",
        "dense_grounding": "vit_jax.objectives.dense_grounding:DenseGrounding",
        "distillation": "vit_jax.objectives.distillation:Distillation",
        "masked_reconstruction": "vit_jax.objectives.masked_reconstruction:MaskedReconstruction",
        "grounding": "vit_jax.objectives.grounding:Grounding",
        "owl": "vit_jax.objectives.owl:Owl",
        "sam": "vit_jax.objectives.sam:Sam",
        "prompt_learning": "vit_jax.objectives.prompt_learning:PromptLearning",
        "region_text": "vit_jax.objectives.region_text:RegionText",
        "self_distillation": "vit_jax.objectives.self_distillation.objective:SelfDistillation",
        "weighted_sum": "vit_jax.objectives.weighted_sum:WeightedSum",
    },
)

__all__ = ["OBJECTIVES", "Batch", "Context", "Metrics", "Objective"]
