"""Data sets, prompt templates and class names by name."""

import pytest

from vit_jax.errors import UserError
from vit_jax.evaluators import prompts
from vit_jax.evaluators.datasets import DATA_SETS, SUPPORTED_EVALUATORS, evaluation_blocks
from vit_jax.evaluators.suite import EVALUATORS


def test_blocks_of_every_data_set_have_valid_keys():
    names = [name for name, data in DATA_SETS.items() if data.test]
    blocks = evaluation_blocks(SUPPORTED_EVALUATORS, names)
    for evaluator, by_name in blocks.items():
        for name, keys in by_name.items():
            EVALUATORS.select({"name": evaluator, **keys}, f"{evaluator}/{name}")
    classes = [name for name, data in DATA_SETS.items() if data.kind == "classes"]
    assert list(blocks["zeroshot"]) == classes
    assert list(blocks["detection"]) == ["emoji_scenes"]
    assert "train" in blocks["probe"]["vtab/eurosat"]


def test_groups_and_other_sources():
    vtab = evaluation_blocks(["zeroshot"], ["vtab/*"])["zeroshot"]
    assert len(vtab) == 14
    assert all(name.startswith("vtab/") for name in vtab)
    own = evaluation_blocks(["zeroshot", "probe"], ["pets=folder:/data/pets"])
    assert own["zeroshot"]["pets"]["data"] == "folder:/data/pets"
    assert "probe" not in own  # the training images of the original source are not used with it
    assert evaluation_blocks(["zeroshot", "retrieval"], ["coco_retrieval=table:x.csv"]) == {
        "retrieval": {
            "coco_retrieval": {"data": "table:x.csv", "captions": "all", "equal_captions": "apart"}
        }
    }


def test_boxes_and_phrases():
    names = ["lvis_detection=coco:l.json?images=d", "flickr30k_entities=grounding:f.jsonl"]
    blocks = evaluation_blocks(["zeroshot", "detection", "phrase_grounding"], names)
    lvis = blocks["detection"].pop("lvis_detection")
    assert (lvis["data"], lvis["style"]) == ("coco:l.json?images=d", "lvis")
    assert lvis["held_out"] == "lvis_rare"
    assert list(blocks["phrase_grounding"]) == ["flickr30k_entities"]
    EVALUATORS.select({"name": "detection", **lvis}, "detection")
    keys = blocks["phrase_grounding"]["flickr30k_entities"]
    EVALUATORS.select({"name": "phrase_grounding", **keys}, "phrase_grounding")


@pytest.mark.parametrize(
    ("names", "evaluators", "message"),
    [
        (["coco_detection"], ["detection"], r"needs a source, as coco_detection=coco:/data/inst"),
        (["coco_detection=coco:c.json"], ["zeroshot"], "it is for detection"),
        (["pet"], ["zeroshot"], "did you mean 'pets'"),
        (["pets"], ["probes"], "did you mean 'probe'"),
        (["vtap/*"], ["zeroshot"], "expected a group"),
        (["coco_retrieval"], ["retrieval"], "needs a source"),
        (["coco_retrieval=table:x.csv"], ["zeroshot"], "it is for retrieval"),
        (["imagenet_v2"], ["probe"], "it has no training data"),
    ],
)
def test_wrong_data_sets(names, evaluators, message):
    with pytest.raises(UserError, match=message):
        evaluation_blocks(evaluators, names)


@pytest.mark.parametrize("name", DATA_SETS)
def test_templates_and_class_names_of_every_data_set_exist(name):
    data = DATA_SETS[name]
    assert all(t.count("{}") == 1 for t in prompts.templates(data.templates))
    if data.class_names:
        # As many classes as the list has names are accepted, and no other number.
        with pytest.raises(UserError, match=r"has [0-9]+ names") as error:
            prompts.class_names(data.class_names, ["x"])
        count = int(str(error.value).split("has ")[1].split()[0])
        assert len(prompts.class_names(data.class_names, ["x"] * count)) == count


def test_prompts_by_name():
    assert len(prompts.templates("clip_imagenet")) == 80
    assert len(prompts.templates("clip_imagenet_7")) == 7
    assert prompts.templates("pets") == ("a photo of a {}, a type of pet.",)
    names = prompts.class_names("imagenet", [f"{i}" for i in range(1000)])
    assert (names[0], names[999]) == ("tench", "toilet paper")
    assert prompts.class_names("", ["great_white_shark"]) == ["great white shark"]


def test_imagenet_identifiers_select_names():
    """In any order, and for a subset of the classes."""
    assert prompts.class_names("imagenet", ["n15075141", "n01440764"]) == ["toilet paper", "tench"]


def test_class_names_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert prompts.class_names(str(tmp_path / "names.txt"), ["a", "b"]) == ["one", "two"]


def test_names_in_another_order_are_matched_by_name_or_refused(caplog):
    assert prompts.class_names(["Dog", "cat", "sea eel"], ["cat", "dog"]) == ["cat", "Dog"]
    assert prompts.class_names(["dog", "cat"], ["cat", "dog"]) == ["cat", "dog"]
    with pytest.raises(UserError, match="'dog' of the data has label 1, but is number 0"):
        prompts.class_names(["dog", "house cat"], ["cat", "dog"])
    with caplog.at_level("INFO", "vit_jax"):
        assert prompts.class_names(["tench", "hen"], ["0", "1"]) == ["tench", "hen"]
    assert "matched by position, as '0' = 'tench' and '1' = 'hen'" in caplog.text
    assert prompts.class_names("", ["n15075141", "n01440764"]) == ["toilet paper", "tench"]
    with pytest.raises(UserError, match="n00000001 is not one of ImageNet's"):
        prompts.class_names("", ["n00000001"])


@pytest.mark.parametrize("text", ["\ufeffone\ntwo\n\n", "one\r\ntwo\u2028\r\n"])
def test_lines_of_names_are_those_of_the_labels(tmp_path, text):
    (tmp_path / "names.txt").write_text(text, "utf-8", newline="")
    assert prompts.class_names(str(tmp_path / "names.txt"), ["a", "b"])[0] == "one"
