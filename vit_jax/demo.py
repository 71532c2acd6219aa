"""Shows a model in the browser.

    python -m vit_jax.demo --workdir runs/clip_emoji

The model:
    --workdir DIR                      newest checkpoint of a run
    --weights FILE [--model NAME]      weights in any format that `convert` reads; --model for
                                       weights that come without a description
    --detector FILE_OR_DIR             a detector, so that SAM finds masks by words

The page has a tab for each thing that the model can do: zero-shot classification, search in a
folder by words or by an image, attention over an image, masked reconstruction, boxes and masks by
words, masks by clicks. It needs no network, listens on 127.0.0.1 unless --host names another
address, and reads folders of this machine: whoever can open it can search them. Embeddings of
folders are kept in the user's cache. Needs the extra [app].
"""

import logging

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError

logger = logging.getLogger("vit_jax.demo")  # also as the main module

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Weight file.")
_MODEL = flags.DEFINE_string("model", None, "Name of the model of --weights.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer, if that of the model needs a file.")
_DETECTOR = flags.DEFINE_string("detector", None, "Weights or run of a detector, for SAM.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", None, "Port; default: a free one from 7860.", 1, 65535)
_MAX_IMAGE_PIXELS = flags.DEFINE_integer(
    "max_image_pixels",
    50_000_000,
    "Pixels above which an image is refused, 0: any number.",
    lower_bound=0,
)


def main() -> None:
    """Opens the model of the flags and serves the page."""
    if bool(_WORKDIR.value) == bool(_WEIGHTS.value):
        raise UserError("expected one model to show: --workdir DIR or --weights FILE")
    if _MODEL.value and not _WEIGHTS.value:
        raise UserError("--model applies to --weights")
    from vit_jax import compilation_cache
    from vit_jax.demonstration import page
    from vit_jax.demonstration.subject import open_subject

    compilation_cache.use_default()
    subject = open_subject(
        str(_WORKDIR.value or _WEIGHTS.value),
        name=_MODEL.value,
        tokenizer=_TOKENIZER.value,
        detector=_DETECTOR.value,
        max_image_pixels=_MAX_IMAGE_PIXELS.value,
    )
    if _HOST.value not in ("127.0.0.1", "localhost"):
        logger.warning("Whoever reaches this machine can search its folders.")
    served, url = page.launch(subject, host=_HOST.value, port=_PORT.value)
    logger.info("%s is shown at %s (Ctrl-C stops it)", subject.title, url)
    served.block_thread()


if __name__ == "__main__":
    cli.run(main, stopped="stopped")
