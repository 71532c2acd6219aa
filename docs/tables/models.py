"""Table of the registered models: parameters, FLOPs, source and licence of published weights.

    python docs/tables/models.py          # writes docs/models.md; minutes, one trace per model

Parameters and FLOPs are counted on abstract arrays; no weights are read.
"""

import pathlib
import re

import vit_jax
from vit_jax.pretrained.listing import ModelInfo

PAGE = pathlib.Path(__file__).parents[1] / "models.md"
SEE_SOURCE = "see source"
# Pattern of names -> source of the weights, and their licence where the source states one for all;
# with * that of the repository, where nothing is said of the weights.
FAMILIES: dict[str, tuple[str, str]] = {
    r".*_emoji(_captioner)?": ("this project: `configs/`, trained on your machine", "yours"),
    r"vit_(giant|gigantic|so400m)14|vit_[bls]8|vit_l14": ("size without one source", SEE_SOURCE),
    r"vit_.*": ("google-research/vision_transformer; timm", "Apache-2.0 *"),
    r"deit3?_.*": ("facebookresearch/deit; timm", "Apache-2.0 *"),
    r"dinov2_.*_pretraining": ("this project: `configs/`, trained on your machine", "yours"),
    r"dinov2_.*": ("facebookresearch/dinov2; timm", "Apache-2.0"),
    r"aimv2_.*_lit": ("apple/ml-aim", SEE_SOURCE),
    r"aimv2_.*": ("apple/ml-aim; timm", SEE_SOURCE),
    r"mae_vit_.*": ("facebookresearch/mae", "CC-BY-NC-4.0 *"),
    r"dinov3_.*|timm_dinov3_.*": ("facebookresearch/dinov3; timm", "DINOv3 License"),
    r"cappa_.*": ("google-research/big_vision (code; no weights)", "-"),
    r"coca_.*": ("mlfoundations/open_clip", SEE_SOURCE),
    r"siglip2_.*_pretraining": ("this project: `configs/`, trained on your machine", "yours"),
    r"siglip2_.*_captioner": ("architecture of google-research/big_vision; no weights", "-"),
    r"swin_.*": ("microsoft/Swin-Transformer; timm", "MIT *"),
    r"resnet.*": ("timm; torchvision", SEE_SOURCE),
    r"clip_.*": ("openai/CLIP", "MIT *"),
    r"timm_siglip2?_.*": ("google-research/big_vision, for timm", "Apache-2.0"),
    r"openclip_siglip2?_.*": ("google-research/big_vision, for open_clip", "Apache-2.0"),
    r"dfn5b_.*": ("apple/DFN5B", SEE_SOURCE),
    r"openclip_.*_worldwide.*": ("facebookresearch/MetaCLIP (2)", SEE_SOURCE),
    r"openclip_.*": ("mlfoundations/open_clip; laion", "MIT; those of others, see source"),
    r"siglip2?_.*": ("google-research/big_vision", "Apache-2.0"),
    r"owl.*": ("google-research/scenic", "Apache-2.0"),
    r"grounding_dino_.*": ("IDEA-Research/GroundingDINO", "Apache-2.0"),
    r"glip_.*": ("microsoft/GLIP", SEE_SOURCE),
    r"regionclip_.*": ("microsoft/RegionCLIP", SEE_SOURCE),
    # The MIT licence of timojl/clipseg says that it does not apply to the weights.
    r"clipseg_.*": ("CIDAS on Hugging Face", "Apache-2.0"),
    r"sam_.*": ("facebookresearch/segment-anything", "Apache-2.0"),
    r"llava_.*": ("liuhaotian on Hugging Face", "Llama 2 Community License"),
    r"qwen_vl": ("QwenLM/Qwen-VL", "Tongyi Qianwen License Agreement"),
    r"stable_diffusion_1_.*": ("Stable Diffusion 1", "CreativeML Open RAIL-M"),
    r"stable_diffusion_(2|xl)_.*": ("Stable Diffusion 2, XL", "CreativeML Open RAIL++-M"),
}
HEAD = """# Models

Written by `python docs/tables/models.py`; a release test compares it with the code. Parameters and
operations are counted on abstract arrays (`vit_jax.list_models`). GFLOPs are billions of operations
of the forward pass of one image, with one text where there is a text tower and one point for SAM. A
multiply-add is two operations, and attention counts.

The licence is that of the published weights, as their source states it, read in public copies of
repositories and model cards. With * it is that of the repository, which says nothing of the weights
by themselves; the model card of `openai/CLIP` calls any deployed use out of scope. "See source"
stands where the weights of one size have several licences, and where none was found. Read the
licence of the file that you use. [weights.md](weights.md) lists the formats and the agreement with
the originals. `create_model` takes the names of timm, open_clip and transformers as well.

| model | architecture | image, px | parameters, M | GFLOPs | source of weights | licence |
|---|---|---|--:|--:|---|---|
"""


def family(name: str) -> tuple[str, str]:
    """Source and licence of the weights of a model.

    Args:
        name: registered name.

    Raises:
        KeyError: no pattern matches the name; add one to `FAMILIES`.
    """
    for pattern, found in FAMILIES.items():
        if re.fullmatch(pattern, name):
            return found
    raise KeyError(f"{name}: add its source and licence to FAMILIES in {__file__}")


def row(model: ModelInfo) -> str:
    """A row of the table.

    Args:
        model: registered model.
    """
    height, width = model.image_size
    size = f"{height} x {width}" if height else "-"
    source, licence = family(model.name)
    return (
        f"| `{model.name}` | {model.architecture} | {size} | {model.parameters / 1e6:,.2f} | "
        f"{model.gflops:,.4g} | {source} | {licence} |"
    )


def main() -> None:
    """Writes `docs/models.md`."""
    rows = [row(model) for model in vit_jax.list_models()]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    print(PAGE, len(rows), "models")


if __name__ == "__main__":
    main()
