"""The demo in a real browser: each tab as a person uses it."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests.demonstration.test_computations import IMAGE, TOWER, photo
from tests.weights.transformers_models import SAM
from vit_jax.demonstration.subject import Subject
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.pretrained.model import PretrainedModel, create_model

pytestmark = [
    pytest.mark.release,
    # Gradio does not close the uploads that it opens.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio", reason="needs the extra [app]")

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextlib.contextmanager
def opened(browser, subject):
    """A page of a demo; the requests that leave this machine and the errors of the console."""
    from vit_jax.demonstration import page as page_lib

    served, url = page_lib.launch(subject, host="127.0.0.1", port=None)
    assert url.startswith("http://127.0.0.1:")
    page, problems = browser.new_page(viewport={"width": 1200, "height": 800}), []
    page.set_default_timeout(180_000)
    allowed = (url, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(allowed) else problems.append(r.url))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    try:
        page.goto(url)
        yield page, problems
    finally:
        page.close()
        served.close()


def tab(page, name):
    """Opens a tab, and returns its panel."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def upload(panel, path):
    panel.locator("input[type=file]").first.set_input_files(path)
    panel.locator("img").first.wait_for()


def save(pixels, path):
    Image.fromarray(pixels).save(path)
    return path


def test_dual_encoder(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    text = {**TOWER, "vocab_size": 49408, "context_length": 16}
    model = create_model(
        "clip_vit_emoji", image=IMAGE, text=text, embed_dim=8, tokenizer="clip",
        max_image_pixels=10_000,
    )  # fmt: skip
    (photos := tmp_path / "photos").mkdir()
    paths = [save(photo(seed, 40), photos / f"{seed}.png") for seed in range(3)]
    with opened(browser, Subject(model, "clip")) as (page, problems):
        panel = tab(page, "Zero-shot")
        upload(panel, paths[0])
        labels = panel.get_by_label("Labels, separated by commas")
        labels.fill("a cat, a dog")
        panel.get_by_role("button", name="Classify").click()
        panel.get_by_text("%").first.wait_for()
        panel = tab(page, "Search")
        panel.get_by_label("Folder on this machine").fill(str(photos))
        panel.get_by_label("Words").fill("a cat")
        panel.get_by_role("button", name="Search").click()
        panel.get_by_text("3 images.").wait_for()
        panel = tab(page, "Attention")
        upload(panel, paths[1])
        panel.get_by_text("Click on a patch.").wait_for()
        panel.locator("img").last.click(position={"x": 30, "y": 30})
        panel.get_by_text("Patch in row 0, column 0").wait_for()
        panel.get_by_label("rollout of all blocks").check()
        word = panel.get_by_label("Word, instead of a patch")
        word.fill("a cat")
        word.press("Enter")
        panel.get_by_text("Patches that make").wait_for()
        assert not problems
        # An image of too many pixels.
        page.reload()
        panel = tab(page, "Attention")
        panel.locator("input[type=file]").first.set_input_files(
            save(np.zeros((200, 200, 3), np.uint8), tmp_path / "large.png")
        )
        page.get_by_text("200 x 200 px are more than max_image_pixels=10000").first.wait_for()
    assert not [each for each in problems if each.startswith("http")]


def test_autoencoder_and_a_broken_upload(browser, tmp_path):
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    model = create_model("mae_vit_b16", image=IMAGE, decoder_mlp_dim=32, **decoder)
    (broken := tmp_path / "broken.png").write_bytes(b"no image")
    with opened(browser, Subject(model, "mae")) as (page, problems):
        panel = tab(page, "Reconstruction")
        upload(panel, save(photo(1, 40), tmp_path / "a.png"))
        panel.locator("img").nth(2).wait_for()
        assert panel.locator("img").count() == 3
        assert not problems
        page.reload()
        panel = tab(page, "Reconstruction")
        panel.locator("input[type=file]").first.set_input_files(broken)
        page.get_by_text("cannot identify image file").first.wait_for()


def test_boxes_and_masks(browser, tmp_path):
    definition = ModelDef(SAM)
    spec = dataclasses.replace(model_spec("sam_vit_b"), architecture=SAM)
    sam = PretrainedModel(spec, definition, definition.init(jax.random.key(0)))
    text = {**TOWER, "vocab_size": 49408, "context_length": 16}
    detector = create_model(
        "owl_emoji", image_size=16, image=IMAGE, text=text, embed_dim=8, tokenizer="clip"
    )
    subject = Subject(sam, "sam", detector=detector)
    path = save(photo(1, 40), tmp_path / "a.png")
    with opened(browser, subject) as (page, problems):
        for name, button in (("Boxes by words", "Find"), ("Masks by words", "Segment")):
            panel = tab(page, name)
            upload(panel, path)
            panel.get_by_label("Words, separated by commas").fill("a cat, a dog")
            panel.get_by_role("button", name=button).click()
            panel.locator("img").nth(1).wait_for()
        panel = tab(page, "Masks by clicks")
        upload(panel, path)
        panel.get_by_text("Click on an object.", exact=True).wait_for()
        panel.locator("img").last.click(position={"x": 10, "y": 10})
        panel.get_by_text("of the image; predicted IoU").wait_for()
        panel.get_by_role("button", name="Remove all points").click()
        panel.get_by_text("of the image; predicted IoU").wait_for(state="hidden")
        assert not problems
