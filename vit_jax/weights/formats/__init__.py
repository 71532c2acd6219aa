"""The formats, and which of them a file is of."""

from vit_jax.errors import UserError
from vit_jax.pretrained.native import Native
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.formats.big_vision import BigVision, BigVisionScanned
from vit_jax.weights.formats.mae import OfficialMAE
from vit_jax.weights.formats.openai_clip import OpenAIClip
from vit_jax.weights.formats.siglip_open_clip import SigLIPOpenCLIP
from vit_jax.weights.formats.swin import OfficialSwin
from vit_jax.weights.formats.timm import Timm
from vit_jax.weights.formats.transformers import Transformers
from vit_jax.weights.formats.vit_jax_npz import ViTJaxNpz

# One row a format; names are those of `--to` and `format=`.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Native(),
        OpenAIClip(),
        SigLIPOpenCLIP(),
        Timm(),
        OfficialMAE(),
        OfficialSwin(),
        Transformers(),
        BigVision(),
        BigVisionScanned(),
        ViTJaxNpz(),
    )
}


def recognise(file: TensorFile) -> Format:
    """The one format that the file's names are of.

    Raises:
        UserError: none or several; lists the known ones.
    """
    found = [f for f in FORMATS.values() if f.matches(file)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f.name for f in found) or "none"
    raise UserError(
        f"{file}: expected tensors of one format out of {', '.join(FORMATS)}; {names} of them has "
        f"these names: {', '.join(file.keys()[:8])}, ...; name one with format= or --from"
    )
