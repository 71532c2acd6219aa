"""Evaluations of image and image-text models, by name.

`config.evals.<type>.<name>` holds the keys of one evaluation. Its metrics are called
`<type>/<name>/<metric>`. The same objects serve training and `vit_jax.evaluate`.
"""

from vit_jax.components import Registry

EVALUATORS = Registry(
    "evaluator",
    {
        "captioning": "vit_jax.evaluators.captioning:Captioning",
        "caption_zeroshot": "vit_jax.evaluators.caption_zeroshot:CaptionZeroShot",
        "classification": "vit_jax.evaluators.classification:Classification",
        "dense_knn": "vit_jax.evaluators.dense_probe:DenseKnn",
        "dense_probe": "vit_jax.evaluators.dense_probe:DenseProbe",
        "detection": "vit_jax.evaluators.detection:Detection",
        "instance_segmentation": "vit_jax.evaluators.instance_segmentation:InstanceSegmentation",
        "interactive_segmentation": (
            "vit_jax.evaluators.interactive_segmentation:InteractiveSegmentation"
        ),
        "fewshot": "vit_jax.evaluators.few_shot:FewShot",
        "knn": "vit_jax.evaluators.knn:NearestNeighbors",
        "multilabel": "vit_jax.evaluators.multilabel:MultiLabel",
        "phrase_grounding": "vit_jax.evaluators.phrase_grounding:PhraseGrounding",
        "probe": "vit_jax.evaluators.linear_probe:LinearProbe",
        "region_classification": "vit_jax.evaluators.region_classification:RegionClassification",
        "retrieval": "vit_jax.evaluators.retrieval:Retrieval",
        "sgd_probe": "vit_jax.evaluators.sgd_probe:SgdProbe",
        "text_segmentation": "vit_jax.evaluators.text_segmentation:TextSegmentation",
        "validation_loss": "vit_jax.evaluators.validation_loss:ValidationLoss",
        "zeroshot": "vit_jax.evaluators.zeroshot:ZeroShot",
    },
)
