"""Writes small files as torch writes them, and their tensors as safetensors.

    python tests/data/make_torch_files.py      (needs the extra `parity`)

`torch_checkpoint.pt` is a training checkpoint (torch.save), `torch_script.pt` a TorchScript archive
like those of OpenAI's CLIP, `torch_old.pt` a state dict in the format before torch 1.6.
"""

import argparse
import pathlib

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent


class Inner(torch.nn.Module):
    """A parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 5))
        self.register_buffer("mask", torch.randn(4, 4).triu())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Uses both, so that neither is optimised away."""
        return x @ self.weight + self.mask.sum()


class Outer(torch.nn.Module):
    """A hierarchy with a list of modules and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(Inner(), torch.nn.Linear(5, 2))
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))
        self.context_length = 7

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Uses everything."""
        return self.blocks(x) * self.logit_scale


def checkpoint_tensors() -> dict[str, torch.Tensor]:
    """One tensor a type and layout: views, transposed, shared, empty, scalar."""
    base = torch.randn(6, 8)
    return {
        "base": base,
        "rows": base[2:4],
        "columns": base[:, 3:5],
        "transposed": base.T,
        "expanded": base[:, :1].expand(6, 4),
        "scalar": torch.tensor(0.5),
        "empty": torch.empty(0, 3),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "long": torch.arange(4),
        "bool": torch.tensor([True, False]),
    }


def main() -> None:
    """Writes the files."""
    torch.manual_seed(0)
    tensors = checkpoint_tensors()
    checkpoint = {
        "epoch": 3,
        "model": {f"module.{name}": torch.nn.Parameter(t, t.is_floating_point())
                  for name, t in tensors.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, output=pathlib.Path("out")),
    }  # fmt: skip
    torch.save(checkpoint, HERE / "torch_checkpoint.pt")
    torch.save(
        {"base": tensors["base"]}, HERE / "torch_old.pt", _use_new_zipfile_serialization=False
    )
    module = Outer().half()
    torch.jit.save(torch.jit.script(module), HERE / "torch_script.pt")
    expected = {f"checkpoint.{k}": v for k, v in tensors.items()}
    expected |= {f"script.{k}": v for k, v in module.state_dict().items()}
    save_file({k: v.contiguous().clone() for k, v in expected.items()},
              HERE / "torch_expected.safetensors")  # fmt: skip


if __name__ == "__main__":
    main()
