"""Converts any source to shards with fast random access.

    python -m vit_jax.data.prepare --input SPEC --output DIR --format array_record|tar
        [--shards N] [--workers K] [--image_size PX] [--quality Q] [--max_image_pixels N]

SPEC is the spec of any source, see `vit_jax.data.sources`. Shards are written in parallel and
atomically, to a local folder or, as tar files, to gs:// or s3://; the same command resumes after an
interruption. `DIR/manifest.json` contains the counts and the SHA-256 of every shard. Examples that
cannot be read are skipped, counted and listed there.
Image files are copied unless --image_size or --quality is given.
"""

from absl import flags

from vit_jax import cli, interruption
from vit_jax.data.images import MAX_PIXELS

_INPUT = flags.DEFINE_string("input", None, "Source, as tar:/data/*.tar.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the shards.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format", "array_record", ["array_record", "tar"], "Format of the shards."
)
_SHARDS = flags.DEFINE_integer("shards", 0, "Shards; 0: one per 10,000 examples.", lower_bound=0)
_WORKERS = flags.DEFINE_integer("workers", 1, "Number of writing processes.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Shortest side of larger images, px; 0: any.", lower_bound=0
)
_QUALITY = flags.DEFINE_integer(
    "quality",
    0,
    "JPEG quality; 0: 95, and copies of images that are not scaled.",
    lower_bound=0,
    upper_bound=100,
)
_MAX_IMAGE_PIXELS = flags.DEFINE_integer(
    "max_image_pixels",
    MAX_PIXELS,
    "Pixels above which an image counts as broken; 0: any number.",
    lower_bound=0,
)


def main() -> None:
    """Writes the shards and prints the counts."""
    from vit_jax.data.preparation import prepare

    manifest = prepare(
        _INPUT.value,
        _OUTPUT.value,
        format=_FORMAT.value,
        shards_count=_SHARDS.value,
        workers=_WORKERS.value,
        image_size=_IMAGE_SIZE.value,
        quality=_QUALITY.value,
        max_image_pixels=_MAX_IMAGE_PIXELS.value,
    )
    print(f"{_OUTPUT.value}: {manifest['examples']} examples, {manifest['broken']} broken")
    source = f"{_FORMAT.value.replace('_', '')}:{_OUTPUT.value}/*.{_FORMAT.value}"
    cli.suggest(f"vit-jax train --config RECIPE --workdir DIR --config.data.train='{source}'")


if __name__ == "__main__":
    cli.run(
        main,
        stopped="stopped; the same command writes the shards that are missing",
        code=interruption.RESUMABLE,
        unwinds=True,
    )
