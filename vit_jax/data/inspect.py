"""Checks a data source before training.

    python -m vit_jax.data.inspect SPEC [--examples N] [--contact_sheet FILE.png] [--tokenizer SPEC]
        [--context_length N] [--max_image_pixels N] [--json]

SPEC is the spec of any source, see `vit_jax.data.sources`. Every image is decoded. Prints how many
examples are broken and why, the sizes, formats and modes of images, exact and near duplicates, the
lengths of captions (in tokens with --tokenizer, as clip or saved:DIR), and the sizes of classes.
"""

from collections.abc import Sequence

from absl import flags

from vit_jax import cli
from vit_jax.data.images import MAX_PIXELS
from vit_jax.errors import UserError

_EXAMPLES = flags.DEFINE_integer(
    "examples", 0, "Examples to read, evenly spread; 0: all.", lower_bound=0
)
_SHEET = flags.DEFINE_string("contact_sheet", None, "PNG of small images; default: none.")
_SHOWN = flags.DEFINE_integer("images", 64, "Images of the contact sheet.", lower_bound=1)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer, as clip; default: none.")
_CONTEXT = flags.DEFINE_integer(
    "context_length", 77, "Tokens above which a caption is truncated.", lower_bound=1
)
_MAX_IMAGE_PIXELS = flags.DEFINE_integer(
    "max_image_pixels",
    MAX_PIXELS,
    "Pixels above which an image counts as broken; 0: any number.",
    lower_bound=0,
)
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object.")


def main(arguments: Sequence[str]) -> None:
    """Inspects the source and prints the report."""
    if len(arguments) != 1:
        raise UserError(f"expected one source, as folder:DIR, found {len(arguments)} arguments")
    # Imported late: `--help` and mistyped flags are answered without JAX.
    from vit_jax.data.contact_sheet import contact_sheet
    from vit_jax.data.inspection import inspect
    from vit_jax.data.inspection_text import as_text
    from vit_jax.data.sources import open_source
    from vit_jax.data.tokenizers.factory import open_encoder
    from vit_jax.paths import as_path

    encoder = open_encoder(_TOKENIZER.value) if _TOKENIZER.value else None
    report, cells = inspect(
        open_source(arguments[0]),
        examples=_EXAMPLES.value,
        thumbnails=_SHOWN.value if _SHEET.value else 0,
        max_image_pixels=_MAX_IMAGE_PIXELS.value,
        encoder=encoder,
        context_length=_CONTEXT.value,
    )
    if _SHEET.value:
        path = as_path(_SHEET.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            contact_sheet(cells).save(file, "PNG")
    if _JSON.value:
        cli.print_json({"source": arguments[0], **report})
    else:
        print(as_text(arguments[0], report))


if __name__ == "__main__":
    cli.run_with_arguments(main)
