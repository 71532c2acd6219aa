"""Memory of the contrastive loss on TPU slices that are not attached, as a Markdown table.

    pip install -e ".[plan]"
    python benchmarks/loss_memory.py

Compiles the loss and its gradients ahead of time and prints the compiler's allocations per chip:
temporaries, inputs (embeddings) and outputs (their gradients). No TPU is needed. A row takes
seconds to minutes; flags select rows.
"""

import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import cli
from vit_jax.objectives.contrastive.loss import FORMS, LOSSES, contrastive_loss
from vit_jax.planning import topologies
from vit_jax.planning.compilation import compile_or_error
from vit_jax.planning.units import demanded_bytes

_TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:16x16", "v5p:4x4x4"], "TPU slices.")
_BATCHES = flags.DEFINE_list("batches", [2**15, 2**18, 2**20, 2**22], "Global batch sizes.")
_FORMS = flags.DEFINE_multi_enum("forms", list(FORMS), FORMS, "Forms of the loss.")
_LOSS = flags.DEFINE_enum("loss", "softmax", LOSSES, "Loss.")
_WIDTH = flags.DEFINE_integer("width", 768, "Width of the embeddings.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Type of the embeddings.")
_TILE_SIZE = flags.DEFINE_integer("tile_size", 1024, "Pairs per side of a tile, for tiled.")

MB = 1e6


def lower_loss(mesh: Mesh, batch: int, form: str) -> jax.stages.Lowered:
    """Lowers the loss of a global batch of embeddings and its gradients.

    Args:
        mesh: mesh with the axis `data`.
        batch: global batch size, pairs.
        form: form of the loss.
    """

    def loss(image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return contrastive_loss(
            image,
            text,
            logit_scale=scale,
            logit_bias=bias,
            loss=_LOSS.value,
            form=form,
            mesh=mesh,
            batch_axes=("data",),
            tile_size=_TILE_SIZE.value,
        )[0]

    sharded = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    shape = (batch, _WIDTH.value)
    embeddings = jax.ShapeDtypeStruct(shape, jnp.dtype(_DTYPE.value), sharding=sharded)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    # Without output shardings the compiler may replicate the gradients.
    outputs = (replicated, (sharded, sharded, replicated, replicated))
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)), out_shardings=outputs)
    return step.lower(embeddings, embeddings, scalar, scalar)


def cells(lowered: jax.stages.Lowered) -> str:
    """Compiles a program and formats temporaries, inputs and gradients as cells of the table."""
    compiled, error = compile_or_error(lowered)
    if compiled is None:
        demanded = demanded_bytes(error or "")
        size = f": {demanded / 2**30:.2f} GiB" if demanded else ""
        return f"does not fit{size} | |"
    found = compiled.memory_analysis()
    sizes = (
        found.temp_size_in_bytes,
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
    )
    return " | ".join(f"{size / MB:.1f}" for size in sizes)


def main() -> None:
    """Prints the table, one row after another."""
    topologies.prepare_platform("")
    print(
        f"{_LOSS.value}, {_DTYPE.value} embeddings of width {_WIDTH.value}, tiles of "
        f"{_TILE_SIZE.value}; MB per chip; jax {jax.__version__}, libtpu {version('libtpu')}\n"
    )
    print(
        "| slice | form | batch | pairs per chip | temporaries | inputs | gradients | compiled in |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|", flush=True)
    for name in _TOPOLOGIES.value:
        mesh = Mesh(np.array(topologies.find_slice(name).devices), ("data",))
        for form in _FORMS.value:
            for batch in map(int, _BATCHES.value):
                start = time.monotonic()
                row = f"| {name} | {form} | {batch:,} | {batch // mesh.size:,} | "
                row += cells(lower_loss(mesh, batch, form))
                print(f"{row} | {time.monotonic() - start:.0f} s |", flush=True)


if __name__ == "__main__":
    cli.run(main)
