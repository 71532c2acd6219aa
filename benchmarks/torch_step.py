"""The training steps of `benchmarks/gpu_step.py` in PyTorch, with timm and open_clip.

    python -m benchmarks.torch_step --models=vit_b16 --batch_size=256 --steps=20

bfloat16 autocast, `torch.compile`, scaled-dot-product attention and fused AdamW. Prints one JSON
object. Needs the extra [parity].
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from absl import app, flags

_MODELS = flags.DEFINE_list("models", ["vit_b16"], "The model to time.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images per step.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Number of timed steps.", lower_bound=1)
_COMPILE = flags.DEFINE_bool("compile", True, "Use torch.compile.")

Loss = Callable[[], torch.Tensor]


def classifier(batch_size: int, device: str) -> tuple[torch.nn.Module, Loss]:
    """A ViT-B/16 of timm with the cross entropy of random labels.

    Args:
        batch_size: images per step.
        device: "cuda" or "cpu".
    """
    import timm

    model = timm.create_model("vit_base_patch16_224", num_classes=1000).to(device).train()
    forward = torch.compile(model) if _COMPILE.value else model
    images = torch.rand(batch_size, 3, 224, 224, device=device)
    labels = torch.randint(1000, (batch_size,), device=device)
    return model, lambda: torch.nn.functional.cross_entropy(forward(images), labels)


def dual_encoder(name: str, batch_size: int, device: str) -> tuple[torch.nn.Module, Loss]:
    """A dual encoder of open_clip with its loss of random pairs.

    Args:
        name: name of a model of open_clip.
        batch_size: pairs per step.
        device: "cuda" or "cpu".
    """
    import open_clip

    model = open_clip.create_model(name, output_dict=True).to(device).train()
    forward = torch.compile(model) if _COMPILE.value else model
    loss = open_clip.SigLipLoss() if "SigLIP" in name else open_clip.ClipLoss()
    config = open_clip.get_model_config(name)["text_cfg"]
    tokens = torch.randint(
        1, config["vocab_size"], (batch_size, config["context_length"]), device=device
    )
    images = torch.rand(batch_size, 3, 224, 224, device=device)
    return model, lambda: loss(**forward(images, tokens))


BUILDERS: dict[str, Callable[[int, str], tuple[torch.nn.Module, Loss]]] = {
    "vit_b16": classifier,
    "clip_vit_b16": lambda batch_size, device: dual_encoder("ViT-B-16", batch_size, device),
    "siglip_b16": lambda batch_size, device: dual_encoder("ViT-B-16-SigLIP", batch_size, device),
}


def main(_: list[str]) -> None:
    """Times the step and prints the result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model, loss = BUILDERS[_MODELS.value[0]](_BATCH.value, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, weight_decay=0.1, fused=device == "cuda"
    )

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(3):
        step()
    seconds = statistics.median(step() for _ in range(_STEPS.value))
    on_gpu = device == "cuda"
    result = {
        "seconds": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
