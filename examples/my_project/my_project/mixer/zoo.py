"""Published sizes of MLP-Mixer (Tolstikhin et al. 2021, table 1) and a tiny one for tests."""

from my_project.mixer.model import MixerConfig
from vit_jax.inputs import ImageInputs
from vit_jax.models.spec import ModelSpec


def _mixer(*, crop_fraction: float = 0.875, **fields: int | tuple[int, int]) -> ModelSpec:
    return ModelSpec(
        architecture=MixerConfig(**fields), inputs=ImageInputs(crop_fraction=crop_fraction)
    )


MIXER_B16 = _mixer(num_classes=1000)
MIXER_L16 = _mixer(
    width=1024, depth=24, tokens_mlp_dim=512, channels_mlp_dim=4096, num_classes=1000
)
MIXER_TINY = _mixer(
    crop_fraction=1.0,
    image_size=(32, 32),
    patch_size=8,
    width=48,
    depth=3,
    tokens_mlp_dim=32,
    channels_mlp_dim=96,
    num_classes=3,
)

MODELS: dict[str, ModelSpec] = {"mixer_b16": MIXER_B16, "mixer_l16": MIXER_L16}
# Names in timm.
ALIASES: dict[str, str] = {"mixer_b16_224": "mixer_b16", "mixer_l16_224": "mixer_l16"}
