"""Memory of the contrastive loss on TPU slices that are not there, as a Markdown table.

    pip install jax libtpu
    python benchmarks/loss_memory.py

Compiles the loss and its gradients alone, ahead of time, and prints what the compiler allocates per
chip above the inputs (embeddings) and the outputs (their gradients). No TPU is needed. A row takes
seconds to minutes; flags restrict the table to some rows.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Read when libtpu is loaded, which would otherwise ask the network what TPU host this is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vit_jax.objectives.contrastive import FORMS, LOSSES, contrastive_loss

MB = 1e6


def slice_mesh(topology: str) -> Mesh:
    """A mesh with the one axis `data` over all chips (v4, v5p: megacores) of a named slice."""
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return Mesh(np.array(description.devices), ("data",))


def compile_loss(
    mesh: Mesh, batch: int, width: int, dtype: str, loss: str, form: str, tile_size: int
) -> jax.stages.Compiled:
    """Compiles loss and gradients of a global batch of embeddings (batch, width)."""

    def loss_of(image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return contrastive_loss(
            image,
            text,
            logit_scale=scale,
            logit_bias=bias,
            loss=loss,
            form=form,
            mesh=mesh,
            batch_axes=("data",),
            tile_size=tile_size,
        )[0]

    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    embeddings = jax.ShapeDtypeStruct((batch, width), jnp.dtype(dtype), sharding=split)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    # Gradients leave as they came: left free, the compiler may replicate them.
    outputs = (whole, (split, split, whole, whole))
    step = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1, 2, 3)), out_shardings=outputs)
    return step.lower(embeddings, embeddings, scalar, scalar).compile()


def describe(memory: Any) -> str:
    """Table cells: temporaries, inputs and gradients, in MB a chip."""
    sizes = (
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
    )
    return " | ".join(f"{size / MB:.1f}" for size in sizes)


def describe_failure(error: jax.errors.JaxRuntimeError) -> str:
    """The same cells for a program that does not fit; any other error is raised again."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    figure = re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error))
    found = f": {figure[1]} of {figure[2]}" if figure else ""
    return f"RESOURCE_EXHAUSTED{found} | |"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topologies", nargs="+", default=["v5e:16x16", "v5p:4x4x4"])
    parser.add_argument("--batches", nargs="+", type=int, default=[2**15, 2**18, 2**20, 2**22])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--loss", choices=LOSSES, default="softmax")
    parser.add_argument("--width", type=int, default=768, help="of the embeddings")
    parser.add_argument("--dtype", default="float32", help="of the embeddings")
    parser.add_argument("--tile_size", type=int, default=1024, help="for tiled, in pairs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, row by row as they are compiled."""
    flags = parse_arguments(arguments)
    print(
        f"{flags.loss}, {flags.dtype} embeddings of width {flags.width}, tiles of "
        f"{flags.tile_size}; MB a chip; jax {jax.__version__}, libtpu {version('libtpu')}\n"
    )
    print(
        "| slice | form | batch | pairs a chip | temporaries | inputs | gradients | compiled in |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|", flush=True)
    for topology in flags.topologies:
        mesh = slice_mesh(topology)
        for form in flags.forms:
            for batch in flags.batches:
                start = time.monotonic()
                try:
                    compiled = compile_loss(
                        mesh, batch, flags.width, flags.dtype, flags.loss, form, flags.tile_size
                    )
                    cells = describe(compiled.memory_analysis())
                except jax.errors.JaxRuntimeError as error:
                    cells = describe_failure(error)
                seconds = time.monotonic() - start
                print(
                    f"| {topology} | {form} | {batch:,} | {batch // mesh.size:,} | {cells} "
                    f"| {seconds:.0f} s |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
