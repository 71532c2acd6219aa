"""Memory of the contrastive loss on TPU slices that are not there, as a Markdown table.

    pip install jax libtpu
    python benchmarks/loss_memory.py

Compiles the loss and its gradients alone, ahead of time, and prints what the compiler allocates per
chip above the inputs (embeddings) and the outputs (their gradients). No TPU is needed. A case takes
seconds to a minute, nearly all of it on one core; the flags restrict the table to some of them.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Read when libtpu is loaded: the machine is not a TPU host, and asking whether it is takes minutes.
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

from vit_jax.objectives.contrastive_loss import FORMS, KINDS, contrastive_loss

MB = 1e6


def slice_mesh(topology: str) -> Mesh:
    """A mesh with the one axis `data` over all chips (v4, v5p: megacores) of a named slice."""
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return Mesh(np.array(description.devices), ("data",))


def compile_loss(
    mesh: Mesh, batch: int, width: int, dtype: str, kind: str, form: str, tile_size: int
) -> jax.stages.Compiled:
    """Compiles loss and gradients of a global batch of embeddings (batch, width)."""

    def loss(image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return contrastive_loss(
            image,
            text,
            logit_scale=scale,
            logit_bias=bias,
            kind=kind,
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
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)), out_shardings=outputs)
    return step.lower(embeddings, embeddings, scalar, scalar).compile()


def describe(compile_case: "functools.partial[jax.stages.Compiled]") -> str:
    """Table cells: temporaries, inputs and gradients in MB a chip, seconds to compile."""
    start = time.monotonic()
    try:
        memory = compile_case().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        figure = re.search(r"Used (\S+) of (\S+) \w+", str(error))
        found = f" ({figure[1]} of {figure[2]})" if figure else ""
        return f"RESOURCE_EXHAUSTED{found} | | | {time.monotonic() - start:.0f}"
    sizes = (
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
    )
    cells = " | ".join(f"{size / MB:.1f}" for size in sizes)
    return f"{cells} | {time.monotonic() - start:.0f}"
