"""Data sets by the names that papers use: where they are read from, class names, templates.

TFDS sets must be prepared as ArrayRecord once (`tfds build NAME --file_format=array_record`); any
other source of the same images can be given in their place, see `blocks`. Splits are those of
TFDS; VTAB's sets without a test split are cut as there (60%, 20%, 20%). Of VTAB's 19 tasks the five
whose labels TFDS does not hold (clevr_*, dsprites_*, kitti_*) are absent.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from vit_jax.errors import UserError, lookup

_PHOTO = ("a photo of a {}.",)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A named data set.

    Attributes:
        test: source that metrics are reported on; "" has to be given by the user.
        train: source for probes, few-shot and nearest neighbours; "" for none.
        validation: source for a probe's sweep; "" for a part of `train`.
        templates: prompts, or a name from `prompts.templates`.
        class_names: see `prompts.class_names`.
        classes: "all" compete, or those "present".
        captions: whether it is for retrieval, all captions of an image.
    """

    test: str = ""
    train: str = ""
    validation: str = ""
    templates: str | tuple[str, ...] = _PHOTO
    class_names: str = ""
    classes: str = "all"
    captions: bool = False


def _imagenet(name: str, split: str, **changes: Any) -> DataSet:
    return DataSet(
        f"tfds:{name}:{split}", templates="clip_imagenet", class_names="imagenet", **changes
    )


def _cut(name: str, templates: str, class_names: str = "") -> DataSet:
    """A set without a test split."""
    train, validation, test = (f"tfds:{name}:train[{part}]" for part in (":60%", "60%:80%", "80%:"))
    return DataSet(test, train, validation, templates, class_names)


def _split(name: str, templates: str = "", class_names: str = "", **changes: Any) -> DataSet:
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
    "eurosat": _cut("eurosat/rgb", "eurosat", "eurosat"),
    "flowers": _split("oxford_flowers102", "flowers", validation="validation"),
    "food101": DataSet("tfds:food101:validation", "tfds:food101:train", templates="food101"),
    "mnist": _split("mnist", "mnist", "mnist"),
    "pcam": _split("patch_camelyon", "pcam", "pcam", validation="validation"),
    "pets": _split("oxford_iiit_pet", "pets", "pets"),
    "resisc45": _cut("resisc45", "resisc45"),
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
    # Karpathy's test splits, from a table or tar shards with the captions of each image.
    "coco_retrieval": DataSet(captions=True),
    "flickr30k_retrieval": DataSet(captions=True),
}

KINDS = ("classification", "fewshot", "knn", "probe", "retrieval", "sgd_probe", "zeroshot")


def blocks(kinds: Iterable[str], names: Iterable[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Evaluation blocks, see `evaluators.Suite`.

    Args:
        kinds: types of evaluators, of `KINDS`; those that do not go with a data set are left out.
        names: data sets, of `DATA_SETS`; "vtab/*" for all of a group; "pets=folder:/data/pets"
            reads the test images from another source.

    Raises:
        UserError: unknown names, or a data set that goes with none of the kinds.
    """
    kinds = list(kinds)
    for kind in kinds:
        lookup(dict.fromkeys(KINDS), kind, "evaluator")
    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in kinds}
    for name, data in _chosen(names):
        made = {kind: block for kind in kinds if (block := _block(kind, data))}
        if not made:
            raise UserError(
                f"the data set {name} goes with none of the evaluators {', '.join(kinds)}: "
                + ("it is for retrieval" if data.captions else "training data are missing")
            )
        for kind, block in made.items():
            found[kind][name] = block
    return {kind: block for kind, block in found.items() if block}


def _chosen(names: Iterable[str]) -> Iterable[tuple[str, DataSet]]:
    for name in names:
        name, _, source = name.partition("=")
        if name.endswith("/*"):
            group = {key: data for key, data in DATA_SETS.items() if key.startswith(name[:-1])}
            if source or not group:
                raise UserError(f"{name}: expected a group, as vtab/*, without a source")
            yield from group.items()
            continue
        data = lookup(DATA_SETS, name, "data set")
        if source:
            # Its training images would be others.
            data = dataclasses.replace(data, test=source, train="", validation="")
        if not data.test:
            raise UserError(f"{name} has to be given a source, as {name}=table:/data/{name}.csv")
        yield name, data


def _block(kind: str, data: DataSet) -> dict[str, Any] | None:
    """The keys of one evaluator, or None where it does not go with the data."""
    if data.captions or kind == "retrieval":
        if not (data.captions and kind == "retrieval"):
            return None
        return {"data": data.test, "captions": "all", "equal_captions": "apart"}
    if kind == "zeroshot":
        return {
            "data": data.test,
            "templates": data.templates,
            "class_names": data.class_names,
            "classes": data.classes,
        }
    if kind == "classification":
        return {"data": data.test, "classes": data.classes}
    if not data.train:
        return None
    pair = {"train": data.train, "test": data.test}
    if kind == "probe":  # CLIP's protocol
        return {**pair, "validation": data.validation, "l2": "sweep", "standardize": False}
    return pair
