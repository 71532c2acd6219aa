"""The page of the demo, in Gradio."""

import functools
import os
from collections.abc import Callable
from typing import Any

from PIL import Image

from vit_jax.demonstration import maps
from vit_jax.demonstration.drawings import boxes_by_words, masks_by_clicks, masks_by_words
from vit_jax.demonstration.gallery import open_gallery
from vit_jax.demonstration.subject import Subject, label_probabilities, split_words
from vit_jax.errors import MissingPackageError, UserError
from vit_jax.segmentation.segment import embed_image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
try:
    import gradio as gr
except ImportError:
    raise MissingPackageError("the demo needs Gradio: pip install 'vit_jax[app]'") from None

MAX_FILE_SIZE = "50mb"  # of an upload

_FONTS = ["system-ui", "sans-serif"]
_MONO_FONTS = ["ui-monospace", "monospace"]
_PROGRESS = gr.Progress()
OBJECT, BACKGROUND = "the object", "not the object"


def build(subject: Subject) -> gr.Blocks:
    """Builds the page with the tabs that the model can do.

    Args:
        subject: model that is shown.
    """
    with gr.Blocks(title=f"vit_jax: {subject.title}", analytics_enabled=False) as page:
        gr.Markdown(f"## {subject.model.kind}: {subject.title}")
        for name, applies, tab in (
            ("Zero-shot", subject.reads_words, _zero_shot),
            ("Search", subject.encodes_images, _search),
            ("Attention", subject.attends, _attention),
            ("Reconstruction", subject.reconstructs, _reconstruction),
            ("Boxes by words", subject.detects, _boxes),
            ("Masks by words", subject.segments_words, _masks_by_words),
            ("Masks by clicks", subject.segments_clicks, _masks_by_clicks),
        ):
            if applies:
                with gr.Tab(name):
                    tab(subject)
    return page


def launch(subject: Subject, *, host: str, port: int | None) -> tuple[gr.Blocks, str]:
    """Serves the page on threads.

    Args:
        subject: model that is shown.
        host: address to listen on.
        port: port; None for a free one from 7860.

    Returns:
        The page and its address.

    Raises:
        OSError: the port is in use.
    """
    theme = gr.themes.Default(font=_FONTS, font_mono=_MONO_FONTS)
    page = build(subject)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        theme=theme,
        max_file_size=MAX_FILE_SIZE,
        footer_links=[],
        ssr_mode=False,
        show_error=True,
        quiet=True,
        prevent_thread_lock=True,
    )
    return page, url


def _explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a UserError as a message of the page."""

    @functools.wraps(function)
    def explained(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return explained


def _upload(label: str = "Image") -> gr.Image:
    # As a path and of any mode: the library itself reads it, with its limits and messages.
    sources: list[Any] = ["upload", "clipboard"]
    return gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        sources=sources,
        height=300,
        buttons=["fullscreen"],
    )


def _drawing(label: str) -> gr.Image:
    # Gradio's button for sharing would upload the image.
    return gr.Image(label=label, interactive=False, buttons=["fullscreen", "download"])


def _given(image: str | None) -> str:
    if image is None:
        raise UserError("no image: drop one first")
    return image


def _zero_shot(subject: Subject) -> None:
    with gr.Row():
        image = _upload()
        with gr.Column():
            labels = gr.Textbox(label="Labels, separated by commas", placeholder="cat, dog")
            button = gr.Button("Classify", variant="primary")
            found = gr.Label(label="Probabilities")

    @_explained
    def classify(image: str | None, labels: str) -> dict[str, float]:
        return label_probabilities(subject, _given(image), split_words(labels))

    gr.on([button.click, labels.submit], classify, [image, labels], found)


def _search(subject: Subject) -> None:
    with gr.Row():
        with gr.Column():
            folder = gr.Textbox(label="Folder on this machine", placeholder="/data/photos")
            words = gr.Textbox(label="Words", visible=subject.reads_words)
            image = _upload("Image, instead of words" if subject.reads_words else "Image")
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=2):
            status = gr.Markdown()
            found = gr.Gallery(label="Most similar", columns=4, object_fit="contain", buttons=[])

    @_explained
    def search(
        folder: str, words: str, image: str | None, progress: Any = _PROGRESS
    ) -> tuple[list[tuple[Any, str]], str]:
        place = os.path.expanduser(folder.strip())
        if words.strip():
            query = subject.text_embeddings([words.strip()])[0]
        elif image is not None:
            query = subject.image_embedding(image)
        else:
            raise UserError("nothing to search for: expected words or an image")
        show = functools.partial(_progress, progress)
        gallery = open_gallery(subject, place, show)
        broken = f", {len(gallery.broken)} cannot be read" if gallery.broken else ""
        results = [
            (thumbnail(subject, path), f"{cosine:.3f} {os.path.basename(path)}")
            for path, cosine in gallery.search(query)
        ]
        return results, f"{len(gallery.paths)} images{broken}."

    gr.on([button.click, words.submit], search, [folder, words, image], [found, status])


def thumbnail(subject: Subject, path: str) -> Image.Image:
    """A small image of a file, for the page.

    Args:
        subject: model, whose limit of pixels applies.
        path: image file.
    """
    image = Image.fromarray(subject.pixels(path))
    image.thumbnail((320, 320))
    return image


def _progress(progress: Any, done: int, total: int) -> None:
    progress((done, total), desc="Reading images", unit="images")


def _attention(subject: Subject) -> None:
    with gr.Row():
        with gr.Column():
            image = _upload()
            which = gr.Radio([maps.LAST, maps.ROLLOUT], value=maps.LAST, label="Attention of")
            word = gr.Textbox(label="Word, instead of a patch", visible=subject.reads_words)
        with gr.Column():
            shown = _drawing("As the model sees it: click on a patch")
            status = gr.Markdown()
    pixels, patch = gr.State(), gr.State()

    @_explained
    def load(image: str | None) -> tuple[Any, None, Any, str]:
        if image is None:
            return None, None, None, ""
        seen = subject.input_pixels(image)
        return seen, None, maps.enlarged(seen), "Click on a patch."

    @_explained
    def by_patch(seen: Any, patch: tuple[int, int] | None, which: str) -> tuple[Any, str]:
        if seen is None or patch is None:
            return gr.skip(), gr.skip()
        heat = maps.patch_attention(subject, seen, *patch, rollout=which == maps.ROLLOUT)
        row, column = patch
        text = f"Patch in row {row}, column {column}; largest weight {heat.max():.3f}."
        return maps.overlay(seen, heat, patch), text

    def by_click(seen: Any, which: str, event: gr.SelectData) -> tuple[Any, str, Any]:
        size = maps.enlarged(seen).size
        patch = maps.patch_at(subject, size, *event.index)
        return *by_patch(seen, patch, which), patch

    @_explained
    def by_word(seen: Any, word: str) -> tuple[Any, str]:
        if seen is None:
            raise UserError("no image: drop one first")
        heat = maps.word_relevance(subject, seen, word)
        return maps.overlay(seen, heat), f"Patches that make the image similar to “{word}”."

    image.change(load, image, [pixels, patch, shown, status])
    shown.select(by_click, [pixels, which], [shown, status, patch])
    which.change(by_patch, [pixels, patch, which], [shown, status])
    word.submit(by_word, [pixels, word], [shown, status])


def _reconstruction(subject: Subject) -> None:
    with gr.Row():
        with gr.Column():
            image = _upload()
            # Steps of 5%: each ratio is compiled when it is first used.
            ratio = gr.Slider(5, 95, value=75, step=5, label="Hidden patches, %")
            seed = gr.Number(0, label="Seed of the patches", precision=0)
        visible = _drawing("What the model sees")
        painted = _drawing("Reconstruction")

    @_explained
    def reconstruct(image: str | None, percent: float, seed: float) -> tuple[Any, Any]:
        if image is None:
            return None, None
        seen = subject.input_pixels(image)
        pair = maps.reconstruction(subject, seen, percent / 100, int(seed))
        return maps.enlarged(pair[0]), maps.enlarged(pair[1])

    events = [image.change, ratio.release, seed.submit]
    gr.on(events, reconstruct, [image, ratio, seed], [visible, painted])


def _by_words(
    subject: Subject, draw: Callable[..., tuple[Any, int]], button: str, default: float
) -> None:
    """An image, words and a threshold, and the drawing of what is found."""
    with gr.Row():
        with gr.Column():
            image = _upload()
            words = gr.Textbox(label="Words, separated by commas", placeholder="a red car, a cat")
            threshold = gr.Slider(0, 1, value=default, step=0.01, label="Score above")
            go = gr.Button(button, variant="primary")
        shown = _drawing("Found")

    @_explained
    def find(image: str | None, words: str, threshold: float) -> Any:
        drawn, count = draw(subject, _given(image), split_words(words), threshold)
        if not count:
            gr.Info("Nothing was found above this score.")
        return drawn

    gr.on([go.click, words.submit], find, [image, words, threshold], shown)


def _boxes(subject: Subject) -> None:
    _by_words(subject, boxes_by_words, "Find", 0.1)


def _masks_by_words(subject: Subject) -> None:
    _by_words(subject, masks_by_words, "Segment", 0.1 if subject.segments_clicks else 0.5)


def _masks_by_clicks(subject: Subject) -> None:
    with gr.Row():
        with gr.Column():
            image = _upload()
            kind = gr.Radio([OBJECT, BACKGROUND], value=OBJECT, label="A click marks")
            clear = gr.Button("Remove all points")
        with gr.Column():
            shown = _drawing("Click on an object")
            status = gr.Markdown()
    embedded, points = gr.State(), gr.State([])

    @_explained
    def load(image: str | None) -> tuple[Any, list, Any, str]:
        if image is None:
            return None, [], None, ""
        pixels = subject.pixels(image)
        return (pixels, embed_image(subject.model, pixels)), [], pixels, "Click on an object."

    @_explained
    def draw(embedded: Any, points: list) -> tuple[Any, str]:
        pixels, features = embedded
        return masks_by_clicks(subject, pixels, features, points)

    def click(embedded: Any, points: list, kind: str, event: gr.SelectData) -> tuple:
        points = [*points, (*event.index, int(kind == OBJECT))]
        return *draw(embedded, points), points

    def restart(embedded: Any) -> tuple:
        return (embedded[0] if embedded else None), [], ""

    image.change(load, image, [embedded, points, shown, status])
    shown.select(click, [embedded, points, kind], [shown, status, points])
    clear.click(restart, embedded, [shown, points, status])
