"""RegionCLIP on the ResNets of OpenAI's CLIP."""

import dataclasses

from vit_jax.inputs import ImageInputs
from vit_jax.models.clip import zoo as clip
from vit_jax.models.regionclip.model import RegionCLIPConfig
from vit_jax.models.spec import CLIP_MEAN, CLIP_STD, ModelSpec

# The authors scale the shorter side to 800 px and the longer one to at most 1333 px, and pad the
# images of a batch at the bottom right. All images of a model have one size here; a photo of 4 : 3
# is 4% smaller in it than there.
IMAGE_SIZE = 1024


def _regionclip(name: str) -> ModelSpec:
    """RegionCLIP (Zhong et al. 2022, section 4), with the size of CLIP's images for its pool."""
    source = clip.MODELS[name].architecture
    image = dataclasses.replace(
        source.image, image_size=IMAGE_SIZE, pool_size=source.image.image_size
    )
    return ModelSpec(
        architecture=RegionCLIPConfig(image=image, text=source.text, embed_dim=source.embed_dim),
        inputs=ImageInputs(resize="corner", interpolation="bilinear", mean=CLIP_MEAN, std=CLIP_STD),
        tokenizer="clip",
    )


MODELS: dict[str, ModelSpec] = {
    "regionclip_rn50": _regionclip("clip_rn50"),
    "regionclip_rn50x4": _regionclip("clip_rn50x4"),
}

# The authors' files; "cc" is Conceptual Captions, on which they were trained.
ALIASES: dict[str, str] = {
    "regionclip_pretrained-cc_rn50": "regionclip_rn50",
    "regionclip_pretrained-cc_rn50x4": "regionclip_rn50x4",
}
