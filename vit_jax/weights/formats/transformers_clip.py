"""CLIP and SigLIP in Hugging Face's transformers (CLIPModel, SiglipModel)."""

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clip.text import TextConfig
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm
from vit_jax.weights.layers.transformers import CLIP, blocks
from vit_jax.weights.mapping import Entry, ResizePositions
from vit_jax.weights.transforms import FLAT, LEADING_ONE, LINEAR, NO_LEADING_ONE, concatenate


def entries(config: CLIPConfig) -> list[Entry]:
    """The mapping of both towers.

    Raises:
        UserError: the library has no such pair.
    """
    if not isinstance(config.image, ViTConfig):
        raise UserError(
            "the format transformers holds pairs whose image tower is a ViT; found "
            f"{type(config.image).__name__}"
        )
    siglip = config.image.pool == "map"
    _check_pooling(config.image, config.text, siglip)
    towers = _image_tower(config.image) + _text_tower(config.text.depth)
    if siglip:
        return [
            *towers,
            *_map_head("image/map_head", "vision_model.head"),
            *linear("text_projection", "text_model.head"),
            Entry("logit_scale", "logit_scale", LEADING_ONE),
            Entry("logit_bias", "logit_bias", LEADING_ONE),
        ]
    return [
        *towers,
        Entry("image/class_token", "vision_model.embeddings.class_embedding", NO_LEADING_ONE),
        *norm("image/pre_norm", "vision_model.pre_layrnorm"),  # their spelling
        *linear("image_projection", "visual_projection", bias=False),
        *linear("text_projection", "text_projection", bias=False),
        Entry("logit_scale", "logit_scale"),
    ]


def _check_pooling(image: ViTConfig, text: TextConfig, siglip: bool) -> None:
    """Refuses what has the parameters of CLIP or SigLIP but uses them in another way."""
    found = (image.pool, text.causal, text.pool)
    expected = ("map", False, "last") if siglip else ("class", True, "eot")
    if found != expected:
        raise UserError(
            "the format transformers holds CLIP (image.pool='class', text.causal=True, "
            "text.pool='eot') and SigLIP ('map', False, 'last'); "
            f"found {found}"
        )
    if image.class_token and not image.prefix_positions:
        raise UserError(
            "the format transformers has a position for CLIP's class token: expected "
            "image.prefix_positions=True; found False"
        )


def _image_tower(config: ViTConfig) -> list[Entry]:
    """What both have."""
    embeddings = "vision_model.embeddings"
    layers = range(config.depth)
    return [
        *conv("image/patch_embed", f"{embeddings}.patch_embedding", bias=config.patch_bias),
        Entry(
            "image/positions",
            f"{embeddings}.position_embedding.weight",
            resize=ResizePositions(config.grid, config.num_special),
        ),
        *blocks("image/transformer/blocks", "vision_model.encoder.layers.{i}", CLIP, layers),
        *norm("image/norm", "vision_model.post_layernorm"),
    ]


def _text_tower(depth: int) -> list[Entry]:
    """What both have, without the projection."""
    embeddings = "text_model.embeddings"
    return [
        Entry("text/token_embed/embedding", f"{embeddings}.token_embedding.weight"),
        Entry("text/positions", f"{embeddings}.position_embedding.weight"),
        *blocks("text/transformer/blocks", "text_model.encoder.layers.{i}", CLIP, range(depth)),
        *norm("text/norm", "text_model.final_layer_norm"),
    ]


def _map_head(path: str, key: str) -> list[Entry]:
    """Attention pooling: torch's MultiheadAttention, whose query we keep apart."""
    kernels = (f"{path}/query/kernel", f"{path}/key_value/kernel")
    biases = (f"{path}/query/bias", f"{path}/key_value/bias")
    return [
        Entry(f"{path}/probe", f"{key}.probe", LEADING_ONE),
        Entry(kernels, f"{key}.attention.in_proj_weight", concatenate(LINEAR)),
        Entry(biases, f"{key}.attention.in_proj_bias", concatenate(FLAT)),
        *attention_out(f"{path}/out", f"{key}.attention.out_proj"),
        *norm(f"{path}/norm", f"{key}.layernorm"),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.fc1"),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.fc2"),
    ]
