"""Memory of the captioning loss on a TPU that is not attached, as a Markdown table.

    pip install -e ".[plan]"
    python benchmarks/caption_loss_memory.py

Compiles the cross-entropy of all tokens of a batch and its gradients ahead of time and prints the
compiler's temporaries per chip, for several sizes of the chunks whose logits exist at a time.
"""

import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import cli
from vit_jax.models import partitioning
from vit_jax.objectives.token_loss import token_losses
from vit_jax.parallel.mesh import BATCH_AXES, make_mesh
from vit_jax.parallel.sharding import ActivationPlacement
from vit_jax.planning import topologies
from vit_jax.planning.compilation import compile_or_error
from vit_jax.planning.units import demanded_bytes

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPU slice.")
_CAPTIONS = flags.DEFINE_integer("captions", 128, "Captions per chip.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens per caption.")
_WIDTH = flags.DEFINE_integer("width", 768, "Width of the decoder.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 256_000, "Number of token ids.")
_CHUNKS = flags.DEFINE_list("chunks", [256, 512, 1024, 2048, 8192], "Tokens per chunk and chip.")

MB = 1e6


def cell(chunk: int) -> str:
    """Compiles loss and gradients and formats the temporaries per chip, MB.

    Args:
        chunk: number of tokens per chip whose logits exist at a time.
    """
    mesh = make_mesh(devices=list(topologies.find_slice(_TOPOLOGY.value).devices))
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    whole = NamedSharding(mesh, PartitionSpec())

    def loss(states: jax.Array, kernel: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
        with partitioning.use(ActivationPlacement(mesh), "tpu"):
            return jnp.mean(token_losses(states, kernel, bias, labels, chunk=chunk).losses)

    shape = (_CAPTIONS.value * mesh.size, _LENGTH.value)
    head = (_WIDTH.value, _VOCAB_SIZE.value)
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), out_shardings=(split, whole, whole))
    lowered = step.lower(
        jax.ShapeDtypeStruct((*shape, _WIDTH.value), jnp.bfloat16, sharding=split),
        jax.ShapeDtypeStruct(head, jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct(head[1:], jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split),
    )
    compiled, error = compile_or_error(lowered)
    if compiled is None:
        return f"does not fit: {demanded_bytes(error or '') / 2**30:.1f} GiB"
    return f"{compiled.memory_analysis().temp_size_in_bytes / MB:,.0f}"


def main() -> None:
    """Prints the table, one row after another."""
    topologies.prepare_platform("")
    tokens = _CAPTIONS.value * _LENGTH.value
    print(
        f"{_TOPOLOGY.value}, {_CAPTIONS.value} captions of {_LENGTH.value} tokens per chip, width "
        f"{_WIDTH.value}, {_VOCAB_SIZE.value:,} ids, bfloat16; jax {jax.__version__}, libtpu "
        f"{version('libtpu')}\n"
    )
    print("| chunk, tokens | logits of a chunk, MB | temporaries, MB | compiled in |")
    print("|--:|--:|--:|--:|", flush=True)
    for chunk in map(int, _CHUNKS.value):
        start = time.monotonic()
        logits = min(chunk, tokens) * _VOCAB_SIZE.value * 4 / MB
        row = f"| {chunk:,} | {logits:,.0f} | {cell(chunk)} |"
        print(f"{row} {time.monotonic() - start:.0f} s |", flush=True)


if __name__ == "__main__":
    cli.run(main)
