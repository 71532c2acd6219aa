"""Turns any source into shards for fast random access.

    python -m vit_jax.data.prepare --input SPEC --output DIR --format array_record|tar
        [--shards N] [--workers K] [--image_size PX] [--quality Q]

SPEC is that of any source, see `vit_jax.data.sources`. Shards are written in parallel, each appears
whole, and the same command goes on where it was cut off. `DIR/manifest.json` has the counts and the
SHA-256 of every shard. Examples that cannot be read are left out, counted and named there.
Images keep their bytes unless --image_size or --quality is given.
"""

from absl import flags

from vit_jax import cli
from vit_jax.data.preparation import prepare
from vit_jax.data.shards import WRITERS

_INPUT = flags.DEFINE_string("input", None, "Spec of the source.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the shards.", required=True)
_FORMAT = flags.DEFINE_enum("format", "array_record", sorted(WRITERS), "Of the shards.")
_SHARDS = flags.DEFINE_integer("shards", 0, "Shards; 0: of 10,000 examples.", lower_bound=0)
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes that write.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Shortest side of larger pictures, px; 0 keeps all as they are.", lower_bound=0
)
_QUALITY = flags.DEFINE_integer(
    "quality", 0, "JPEG quality of pictures written anew; 0: 95.", lower_bound=0, upper_bound=100
)


def main() -> None:
    """Prepares and says what was written."""
    manifest = prepare(
        _INPUT.value,
        _OUTPUT.value,
        format=_FORMAT.value,
        shards_count=_SHARDS.value,
        workers=_WORKERS.value,
        image_size=_IMAGE_SIZE.value,
        quality=_QUALITY.value,
    )
    print(f"{manifest['examples']} examples, {manifest['broken']} broken: {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
