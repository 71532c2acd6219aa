"""Data sets by their usual names: sources, class names and prompt templates.

Data sets of TFDS must be prepared once, as ArrayRecord (`tfds build NAME
--file_format=array_record`) or TFRecord. Any other source of the same images can replace them, see
`evaluation_blocks`. Splits are those of TFDS. Data sets of VTAB without a test split are divided as
in VTAB (60%, 20%, 20%). Five of VTAB's 19 tasks (clevr_*, dsprites_*, kitti_*) are missing, because
TFDS does not contain their labels.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from vit_jax.errors import UserError, check_name, lookup

_PHOTO = ("a photo of a {}.",)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A named data set.

    Attributes:
        test: source on which metrics are computed; "": the user must give it.
        train: source for linear probes, few-shot classification and nearest neighbors; "": none.
        validation: source for the sweep of a linear probe; "": a part of `train`.
        templates: prompt templates, or the name of a set, see `prompts.templates`.
        class_names: names of the classes, see `prompts.class_names`.
        classes: candidates for the prediction, "all" or "present", see `zeroshot.ZeroShot.Config`.
        kind: what its images have: "classes", "captions" for retrieval, "boxes" for detection, or
            "phrases" of captions with boxes.
        style: rules of the annotations of boxes, see `detection.Detection.Config`.
        held_out: classes that detection reports apart, likewise.
    """

    test: str = ""
    train: str = ""
    validation: str = ""
    templates: str | tuple[str, ...] = _PHOTO
    class_names: str = ""
    classes: str = "all"
    kind: str = "classes"
    style: str = "coco"
    held_out: str = ""


def _imagenet(name: str, split: str, **changes: Any) -> DataSet:
    """Makes a data set with classes of ImageNet."""
    return DataSet(
        f"tfds:{name}:{split}", templates="clip_imagenet", class_names="imagenet", **changes
    )


def _divided(name: str, templates: str, class_names: str = "") -> DataSet:
    """Makes a data set without a test split."""
    train, validation, test = (f"tfds:{name}:train[{part}]" for part in (":60%", "60%:80%", "80%:"))
    return DataSet(test, train, validation, templates, class_names)


def _split(name: str, templates: str = "", class_names: str = "", **changes: Any) -> DataSet:
    """Makes a data set with the splits train and test."""
    options = changes.pop("options", "")
    validation = changes.pop("validation", "")
    return DataSet(
        f"tfds:{name}:test{options}",
        f"tfds:{name}:train{options}",
        validation and f"tfds:{name}:{validation}{options}",
        templates or _PHOTO,
        class_names,
        **changes,
    )


_IMAGENET = {
    "imagenet": _imagenet("imagenet2012", "validation", train="tfds:imagenet2012:train"),
    "imagenet_v2": _imagenet("imagenet_v2", "test"),
    "imagenet_sketch": _imagenet("imagenet_sketch", "test"),
    "imagenet_a": _imagenet("imagenet_a", "test", classes="present"),
    "imagenet_r": _imagenet("imagenet_r", "test", classes="present"),
}

_CLASSES = {
    "caltech101": _split("caltech101", "caltech101", "caltech101_vtab"),
    "cars": _split("cars196", "cars"),
    "cifar10": _split("cifar10", "cifar10"),
    "cifar100": _split("cifar100", "cifar100"),
    "dtd": _split("dtd", "dtd", validation="validation"),
    "eurosat": _divided("eurosat/rgb", "eurosat", "eurosat"),
    "flowers": _split("oxford_flowers102", "flowers", validation="validation"),
    "food101": DataSet("tfds:food101:validation", "tfds:food101:train", templates="food101"),
    "mnist": _split("mnist", "mnist", "mnist"),
    "pcam": _split("patch_camelyon", "pcam", "pcam", validation="validation"),
    "pets": _split("oxford_iiit_pet", "pets", "pets"),
    "resisc45": _divided("resisc45", "resisc45"),
    "stl10": _split("stl10", "stl10"),
    "sun397": _split("sun397/tfds", "sun397", validation="validation"),
    "svhn": _split("svhn_cropped", "svhn", "svhn"),
}

_VTAB = {
    **{
        name: _CLASSES[name]
        for name in (
            "caltech101", "cifar100", "dtd", "eurosat", "flowers", "pcam", "pets", "resisc45",
            "sun397", "svhn",
        )
    },
    "diabetic_retinopathy": _split(
        "diabetic_retinopathy_detection/btgraham-300",
        "diabetic_retinopathy",
        "diabetic_retinopathy",
        validation="validation",
    ),
    "dmlab": _split("dmlab", "dmlab", "dmlab", validation="validation"),
    "smallnorb_azimuth": _split(
        "smallnorb", "smallnorb_label_azimuth", options="?label=label_azimuth"
    ),
    "smallnorb_elevation": _split(
        "smallnorb", "smallnorb_label_elevation", options="?label=label_elevation"
    ),
}  # fmt: skip

_EMBEDDED = {
    "digits": DataSet("digits:test", "digits:train", templates="mnist", class_names="mnist"),
    "mnist5k": DataSet("mnist5k:test", "mnist5k:train", templates="mnist", class_names="mnist"),
    "fashion_mnist": DataSet("fashion_mnist:test", "fashion_mnist:train"),
    "emoji": DataSet("emoji:heldout_names", templates=("{}",), classes="present"),
}

DATA_SETS: dict[str, DataSet] = {
    **_IMAGENET,
    **_CLASSES,
    **{f"vtab/{name}": data for name, data in _VTAB.items()},
    **_EMBEDDED,
    # Karpathy's test splits, as a table or tar shards with all captions of each image.
    "coco_retrieval": DataSet(kind="captions"),
    "flickr30k_retrieval": DataSet(kind="captions"),
    # Boxes, with the prompts of OWL-ViT (Minderer et al. 2022, section 4.1).
    "coco_detection": DataSet(kind="boxes", templates="clip_imagenet_7"),
    "lvis_detection": DataSet(
        kind="boxes", templates="clip_imagenet_7", style="lvis", held_out="lvis_rare"
    ),
    "emoji_scenes": DataSet("emoji_scenes:heldout_names[:500]", kind="boxes", templates=("{}",)),
    "flickr30k_entities": DataSet(kind="phrases", templates=("{}",)),
}

SUPPORTED_EVALUATORS = (
    "classification", "detection", "fewshot", "knn", "phrase_grounding", "probe", "retrieval",
    "sgd_probe", "zeroshot",
)  # fmt: skip
# Kind of data of an evaluator; "classes" for all others.
_KINDS = {"retrieval": "captions", "detection": "boxes", "phrase_grounding": "phrases"}
_EXAMPLES = {
    "boxes": "coco:/data/instances_val2017.json?images=/data/val2017",
    "phrases": "grounding:/data/flickr30k.jsonl?images=/data/flickr30k",
}
_REASONS = {
    "captions": "it is for retrieval",
    "boxes": "it is for detection",
    "phrases": "it is for phrase_grounding",
    "classes": "it has no training data",
}


def evaluation_blocks(
    evaluators: Iterable[str], names: Iterable[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Makes the evaluation blocks of data sets.

    Args:
        evaluators: evaluators, of `SUPPORTED_EVALUATORS`. An evaluator that does not apply to a
            data set is left out there.
        names: data sets, of `DATA_SETS`. "vtab/*" stands for all of a group, and
            "pets=folder:/data/pets" reads the test images from another source.

    Returns:
        Blocks by type and name, see `suite.Suite`.

    Raises:
        UserError: an unknown name, or a data set to which no evaluator applies.
    """
    evaluators = list(evaluators)
    for evaluator in evaluators:
        check_name(evaluator, SUPPORTED_EVALUATORS, "evaluator")
    blocks: dict[str, dict[str, dict[str, Any]]] = {evaluator: {} for evaluator in evaluators}
    for name, data in _selected(names):
        applicable = {e: keys for e in evaluators if (keys := _keys(e, data)) is not None}
        if not applicable:
            raise UserError(
                f"none of the evaluators {', '.join(evaluators)} applies to the data set {name}: "
                f"{_REASONS[data.kind]}"
            )
        for evaluator, keys in applicable.items():
            blocks[evaluator][name] = keys
    return {evaluator: block for evaluator, block in blocks.items() if block}


def _selected(names: Iterable[str]) -> Iterator[tuple[str, DataSet]]:
    """Yields the data sets that names stand for."""
    for entry in names:
        name, _, source = entry.partition("=")
        if name.endswith("/*"):
            group = {key: data for key, data in DATA_SETS.items() if key.startswith(name[:-1])}
            if source or not group:
                raise UserError(
                    f"{entry}: expected a group of data sets without a source, as vtab/*"
                )
            yield from group.items()
            continue
        data = lookup(DATA_SETS, name, "data set")
        if source:
            # The training images of the original source may differ from those of another one.
            data = dataclasses.replace(data, test=source, train="", validation="")
        if not data.test:
            example = _EXAMPLES.get(data.kind, f"table:/data/{name}.csv")
            raise UserError(f"{name} needs a source, as {name}={example}")
        yield name, data


def _keys(evaluator: str, data: DataSet) -> dict[str, Any] | None:
    """Returns the keys of an evaluator, or None if it does not apply to the data set."""
    if data.kind != _KINDS.get(evaluator, "classes"):
        return None
    if evaluator == "phrase_grounding":
        return {"data": data.test, "templates": data.templates}
    if evaluator == "detection":
        return {
            "data": data.test,
            "templates": data.templates,
            "style": data.style,
            "held_out": data.held_out,
        }
    if evaluator == "retrieval":
        return {"data": data.test, "captions": "all", "equal_captions": "apart"}
    if evaluator == "zeroshot":
        return {
            "data": data.test,
            "templates": data.templates,
            "class_names": data.class_names,
            "classes": data.classes,
        }
    if evaluator == "classification":
        return {"data": data.test, "classes": data.classes}
    if not data.train:
        return None
    sources = {"train": data.train, "test": data.test}
    if evaluator == "probe":  # CLIP's protocol
        return {**sources, "validation": data.validation, "l2": "sweep", "standardize": False}
    return sources
