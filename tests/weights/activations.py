"""Outputs of models that are compared with those of other libraries."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models.clip.model import CLIP
from vit_jax.models.clip_text.model import CLIPText
from vit_jax.models.clipseg.model import CLIPSeg
from vit_jax.models.grounding_dino.model import GroundingDino
from vit_jax.models.llava.model import Llava
from vit_jax.models.mae.model import MAE
from vit_jax.models.owl.model import Owl
from vit_jax.models.sam.model import Sam
from vit_jax.models.sam.prompts import join_prompts
from vit_jax.models.swin.model import Swin

Arrays = Mapping[str, Any]
# First parts of the names of what a model is given.
INPUTS = ("images", "tokens", "sizes", "noise", "prompts")


def activations(module: Any, given: Arrays) -> dict[str, jax.Array]:
    """Computes the outputs of all blocks, pooled features and logits.

    Args:
        module: bound model.
        given: `images`, with `tokens` for dual encoders and detectors, `sizes` for Grounding DINO,
            `noise` for autoencoders and `prompts` for SAM.
    """
    if isinstance(module, CLIPText):
        return text_encoder(module, given["tokens"])
    images = given["images"]
    if isinstance(module, Sam):
        return prompted(module, images, given)
    if isinstance(module, Llava):
        found = {"embeddings": module(images)}
        blocks = module.features(images, range(module.image.config.depth))
        return found | numbered("image_block", blocks)
    if isinstance(module, GroundingDino):
        return grounding(module, images, given["tokens"], given["sizes"])
    if isinstance(module, Owl):
        return detector(module, images, given["tokens"])
    if isinstance(module, CLIPSeg):
        return segmenter(module, images, given["tokens"])
    if isinstance(module, CLIP):
        return pair(module, images, given["tokens"])
    found = {"pooled": module.encode_image(images)}
    if isinstance(module, MAE):
        found["pixels"], found["mask"] = module.reconstruct(images, given["noise"], 0.75)
        return found | numbered("block", module.features(images, range(module.image.config.depth)))
    config = module.config
    if config.num_classes:
        found["logits"] = module(images)
    if isinstance(module, Swin):  # other libraries' maps are (B, h w, C)
        stages = module.features(images, range(len(config.depths)))
        return found | numbered("block", [x.reshape(len(x), -1, x.shape[-1]) for x in stages])
    if config.has_distillation_head:
        found["by_class"], found["by_distillation"] = module.both_logits(images)
    return found | numbered("block", module.features(images, range(config.depth)))


def text_encoder(module: CLIPText, tokens: jax.Array) -> dict[str, jax.Array]:
    """Computes pooled features, and the states with all blocks and without the last one."""
    found = {"pooled": module.encode_text(tokens), "states": module.text_states(tokens)}
    found["states_1"] = module.text_states(tokens, clip_skip=1)
    blocks = module.text.features(tokens, range(module.text.config.depth))
    return found | numbered("text_block", blocks)


def pair(module: CLIP, images: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
    """Computes the outputs of the blocks of both towers, embeddings and logits."""
    z = module.encode_image(images, normalize=True)
    t = module.encode_text(tokens, normalize=True)
    scale, bias = module.logit_parameters()
    logits = scale * z @ t.T + (0.0 if bias is None else bias)
    found = {"image_normalized": z, "text_normalized": t, "logits": logits}
    image = module.features(images, range(module.image.config.depth))
    text = module.text.features(tokens, range(module.text.config.depth))
    return found | numbered("image_block", image) | numbered("text_block", text)


def detector(module: Owl, images: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
    """Computes the outputs of both towers and of the heads, also for the images as queries."""
    found = module(images, tokens)
    features = module.patch_features(images)
    flat = tokens.reshape(-1, tokens.shape[-1])
    query, index = module.embed_image_query(images)
    found |= {
        "logits": jnp.where(tokens[:, None, :, 0] > 0, found["logits"], 0),
        "features": features,
        "class_embeddings": module.class_head.embed(features),
        "text_normalized": module.embed_queries(flat).reshape(*tokens.shape[:2], -1),
        "image_query": query,
        "image_query_index": index,
    }
    image = module.features(images, range(module.image.config.depth))
    text = module.text.features(flat, range(module.text.config.depth))
    return found | numbered("image_block", image) | numbered("text_block", text)


def segmenter(module: CLIPSeg, images: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
    """Computes the outputs of towers and decoder, by texts and by the other image."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    by_text = module.encode_text(flat).reshape(*tokens.shape[:2], -1)
    by_image = module.encode_image(images[::-1])
    blocks = module.features(images, module.config.layers)
    image = module.features(images, range(module.image.config.depth))
    found = {
        "masks": module(images, tokens)["masks"],
        "masks_by_image": module.masks_of(images, by_image[:, None])["masks"][:, 0],
        "text_conditions": by_text,
        "image_conditions": by_image,
    }
    text = module.text.features(flat, range(module.text.config.depth))
    found |= numbered("image_block", image) | numbered("text_block", text)
    return found | numbered("decoder_block", module.decoder.states(blocks, by_text))


def grounding(
    module: GroundingDino, images: jax.Array, tokens: jax.Array, sizes: jax.Array
) -> dict[str, jax.Array]:
    """Computes the results of all parts of Grounding DINO."""
    found = module.predict(images, tokens, sizes=sizes)
    exists = (tokens > 0)[:, None]
    return {
        "text": found.text,
        "position_logits": jnp.where(exists, found.position_logits, 0),
        "position_boxes": jax.nn.sigmoid(found.position_boxes),
        "selected": found.selected_boxes,
        "boxes": found.boxes[-1],
        "logits": jnp.where(exists, found.logits[-1], 0),
        **numbered("level", found.levels),
        **numbered("image_block", list(found.enhanced_image)),
        **numbered("text_block", list(found.enhanced_text)),
        **numbered("query_block", list(found.queries)),
    }


def prompted(module: Sam, images: jax.Array, given: Arrays) -> dict[str, jax.Array]:
    """Computes the results of all parts of SAM for prompts of all kinds."""
    points, labels, boxes = (given[f"prompts.{name}"] for name in ("points", "labels", "boxes"))
    masks = given["prompts.masks"]
    embedded = module.embed_image(images)
    found = {
        "embedded": embedded,
        "positions": module.prompts.embed_grid(embedded.shape[1:3]),
        "masks_embedded": module.prompts.embed_masks(masks[:, 0]),
    }
    for kind, prompts in {
        "points": (points, labels, None),
        "boxes": (None, None, boxes),
        "both": (points, labels, boxes),
        "masks": (None, None, boxes),
    }.items():
        joined = join_prompts(*prompts)
        given_masks = masks if kind == "masks" else None
        inputs = module.embed_prompts(embedded, *joined, given_masks)
        if kind == "both":
            for i, (tokens, pixels) in enumerate(module.decoder.attend(*inputs)):
                found[f"tokens_{i}"] = tokens.reshape(*joined[1].shape[:2], *tokens.shape[1:])
                found[f"pixels_{i}"] = pixels[:, None]
        found[f"{kind}_tokens"] = inputs[2].reshape(*joined[1].shape, -1)
        result = module.predict_masks(embedded, *joined, given_masks, multimask=kind != "boxes")
        found |= {f"{kind}_logits": result["masks"], f"{kind}_scores": result["scores"]}
    blocks = module.features(images, range(module.config.image.depth))
    return found | numbered("image_block", blocks)


def numbered(name: str, arrays: list[jax.Array]) -> dict[str, jax.Array]:
    """Returns the arrays under the names `name_0`, `name_1`, ..."""
    return {f"{name}_{i}": array for i, array in enumerate(arrays)}
