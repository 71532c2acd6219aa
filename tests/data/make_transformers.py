"""Writes `transformers_*.safetensors`: small models of transformers and what they compute.

    python tests/data/make_transformers.py      (needs the extra `parity`)

The weights are under the names of the library's files, inputs and outputs under `reference.`; the
model's `config.json` lies beside them. Every weight is random, so that none hides behind a zero or
a one. Images are (B, H, W, 3), float32.
"""

import json
import pathlib
import tempfile
from collections.abc import Sequence

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

DIRECTORY = pathlib.Path(__file__).parent
Tensors = dict[str, torch.Tensor]

STACK = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
IMAGE = {**STACK, "image_size": 16, "patch_size": 4}
TEXT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 50,
    "max_position_embeddings": 9,
    "bos_token_id": 48,
    "eos_token_id": 49,
    "pad_token_id": 0,
}
HEAD = {"num_labels": 5}
DINOV2 = {key: value for key, value in IMAGE.items() if key != "intermediate_size"}
DINOV2 |= {"mlp_ratio": 2, "layerscale_value": 0.5}


def make_models() -> dict[str, nn.Module]:
    t = transformers
    decoder = {f"decoder_{k}": v for k, v in {**STACK, "hidden_size": 8}.items()}
    return {
        "clip": t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=10)),
        "siglip": t.SiglipModel(
            t.SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=IMAGE)
        ),
        "vit": t.ViTForImageClassification(t.ViTConfig(**IMAGE, **HEAD)),
        "vit_bare": t.ViTModel(t.ViTConfig(**IMAGE)),
        "deit": t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**IMAGE, **HEAD)),
        "dinov2": t.Dinov2Model(t.Dinov2Config(**DINOV2)),
        "dinov2_with_registers": t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=3)
        ),
        "mae": t.ViTMAEForPreTraining(t.ViTMAEConfig(**IMAGE, **decoder)),
        "swin": t.SwinForImageClassification(
            t.SwinConfig(
                image_size=32,
                patch_size=4,
                embed_dim=8,
                depths=[3, 2],
                num_heads=[2, 4],
                window_size=4,
                mlp_ratio=2.0,
                **HEAD,
            )
        ),
    }


def randomise(model: nn.Module) -> None:
    """Random weights that keep activations near one; MAE's positions are its fixed ones."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and name.endswith("weight") and "embedding.weight" not in name:
            noise = noise * parameter[0].numel() ** -0.5
        else:
            noise = 0.3 * noise + float("norm" in name and name.endswith("weight"))
        parameter.data = noise
        if name == "logit_scale":
            parameter.data.fill_(1.5)
    if isinstance(model, transformers.ViTMAEForPreTraining):
        set_fixed_positions(model)


def set_fixed_positions(model: nn.Module) -> None:
    """MAE's, as in published weights; transformers 5.24 leaves zeros in a model made afresh."""
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        _, length, width = table.shape
        side = round((length - 1) ** 0.5)
        rows_first = build_2d_sinusoidal_position_embedding(side, side, width, cls_token=True)
        rows, columns = rows_first.chunk(2, dim=1)
        table.data = torch.cat([columns, rows], dim=1)[None]


def block_outputs(blocks: Sequence[nn.Module]) -> list[torch.Tensor]:
    """A list that fills with each block's output during a forward pass."""
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, args: object, output: torch.Tensor | tuple) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    for block in blocks:
        block.register_forward_hook(keep)
    return outputs


def named(prefix: str, blocks: list[torch.Tensor]) -> Tensors:
    return {f"{prefix}block_{i}": block for i, block in enumerate(blocks)}


def towers(model: nn.Module, images: torch.Tensor) -> Tensors:
    """CLIP and SigLIP."""
    config = model.config.text_config
    length, end_id = config.max_position_embeddings, config.vocab_size - 1
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(2, end_id - 1, (2, length), generator=generator)
    for row, end in enumerate((3, length - 1)):  # texts of different lengths
        tokens[row, end], tokens[row, end + 1 :] = end_id, 0
    image = block_outputs(model.vision_model.encoder.layers)
    text = block_outputs(model.text_model.encoder.layers)
    output = model(input_ids=tokens, pixel_values=images)
    return {
        "tokens": tokens,
        "image_normalized": output.image_embeds,
        "text_normalized": output.text_embeds,
        "logits": output.logits_per_image,
        **named("image_", image),
        **named("text_", text),
    }


def tower(model: nn.Module, images: torch.Tensor) -> Tensors:
    """ViT, DeiT, DINOv2."""
    base = getattr(model, model.base_model_prefix, model)
    blocks = block_outputs(base.encoder.layer if hasattr(base, "encoder") else base.layers)
    output = model(images)
    found = named("", blocks)
    if "logits" not in output:
        return found | {"pooled": output.last_hidden_state[:, 0]}
    found["logits"] = output.logits
    if "cls_logits" in output:
        found["by_class"] = output.cls_logits
        found["by_distillation"] = output.distillation_logits
    return found | {"pooled": base(images).last_hidden_state[:, 0]}


def autoencoder(model: nn.Module, images: torch.Tensor) -> Tensors:
    """MAE: predictions, and the encoder's blocks on whole images."""
    count = model.vit.embeddings.patch_embeddings.num_patches
    noise = torch.rand((2, count), generator=torch.Generator().manual_seed(3))
    output = model(images, noise=noise)
    found = {"noise": noise, "pixels": output.logits, "mask": output.mask}
    blocks = block_outputs(model.vit.layers)
    ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
    in_order = torch.arange(float(count)).repeat(2, 1)
    found["pooled"] = model.vit(images, noise=in_order).last_hidden_state[:, 0]
    model.config.mask_ratio = ratio
    return found | named("", blocks)


def stages(model: nn.Module, images: torch.Tensor) -> Tensors:
    """Swin: the output of each stage's last block."""
    layers = model.swin.encoder.layers
    outputs = block_outputs([layer.blocks[-1] for layer in layers])
    logits = model(images).logits
    found = named("", outputs)
    return found | {"pooled": model.swin(images).pooler_output, "logits": logits}


def saved(model: nn.Module) -> tuple[Tensors, dict[str, object]]:
    """Weights and settings as the library writes them."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        weights = load_file(f"{directory}/model.safetensors")
        config = json.loads(pathlib.Path(directory, "config.json").read_text())
    # Published files have the first name; transformers 5.24 writes the second by mistake.
    published, mistaken = "decoder.decoder_layers.", "decoder.decoder_encoder.layer."
    return {key.replace(mistaken, published): value for key, value in weights.items()}, config


def compute(name: str, model: nn.Module) -> Tensors:
    """Fixed inputs and what a model of that name (a key of `RUN`, else a tower) makes of them."""
    config = getattr(model.config, "vision_config", model.config)
    size = (2, 3, config.image_size, config.image_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reference = RUN.get(name, tower)(model.eval(), images)
    return reference | {"images": images.permute(0, 2, 3, 1)}


RUN = {"clip": towers, "siglip": towers, "mae": autoencoder, "swin": stages}


def main() -> None:
    """Runs every model on fixed inputs and writes everything."""
    for name, model in make_models().items():
        randomise(model)
        tensors, config = saved(model)
        tensors |= {f"reference.{key}": value for key, value in compute(name, model).items()}
        path = DIRECTORY / f"transformers_{name}.safetensors"
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
        path.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
