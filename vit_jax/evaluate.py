"""Evaluates a model without training it.

    python -m vit_jax.evaluate --workdir DIR

The model:
    --workdir DIR [--step N]           checkpoint of a run; by default the newest
    --workdir DIR --follow             each checkpoint as it appears, until the run is complete; the
                                       run may train elsewhere, and its own config.evals be empty.
                                       Steps that the log of --output has are left out
    --workdir DIR --config.KEY=VALUE   the run at another size of images or patches, as
                                       --config.model.image_size=384; also model.inputs.*,
                                       compute.*, evals.* and eval_batch_size
    --weights FILE [--model NAME]      weights in any format that `convert` reads; --model for
                                       weights that come without a description
    --model NAME                       registered model with fresh parameters, as a baseline

The evaluations:
    (none of the following)            those of the run's config, with the same results as in
                                       training at that step
    --evals FILE.py                    the blocks that its function get_evals() returns
    --datasets pets,vtab/*,imagenet=folder:/data/val [--evaluators zeroshot,probe]
                                       data sets by name, see vit_jax/evaluators/datasets.py
    --images DIR [--names FILE]        zero-shot accuracy on your own images: one sub-folder per
                                       class, or a names file with lines `file.png<TAB>label`
    --image FILE --labels "a cat,a dog"  probability of each label for one image
    --image FILE --detect "a cat,a dog"  boxes of these names, also in a folder of images
    --image FILE --segment "a cat,a dog" [--detector MODEL]
                                       masks of these names, also in a folder of images; SAM needs a
                                       detector: a file or a folder of weights, or a name

Drawings, with --draw DIR: images with their detections, those of --detect or those in the first
images of evaluations of the type `detection`; images with their masks, and the masks of --segment.
--threshold is the score of a detection or of a mask.

The devices:
    (none of the following)            all at hand, whatever the run was trained on: a run keeps
                                       its config.mesh.fsdp and tensor where they divide them
    --mesh.data N --mesh.fsdp N --mesh.tensor N
                                       another layout, as config.mesh in training

Metrics are printed as a table, or with --json as one object. --output DIR adds a line per
evaluation to DIR/evaluations.jsonl, also gs:// or s3://, and TensorBoard files to a local DIR. With
--workdir they are also added to the run in its own TensorBoard, Weights & Biases and MLflow, as
config.trackers has them; --notrack, or a change of its config, leaves the run as it is.
--cache DIR keeps embeddings on disk: an interrupted command continues where it was, and further
evaluations of the same weights and data start from them.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax import cli
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.evaluation import Evaluation
    from vit_jax.pretrained.model import PretrainedModel
    from vit_jax.tracking import Trackers

logger = logging.getLogger(__name__)

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: newest.", 0)
_FOLLOW = flags.DEFINE_bool("follow", False, "Evaluate each checkpoint of the run as it appears.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Weight file.")
_MODEL = flags.DEFINE_string("model", None, "Name of a registered model.")
_FORMAT = flags.DEFINE_string("format", None, "Format of --weights; default: recognized.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer, if that of the model needs a file.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute type for --weights and --model.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "Examples per batch over all devices, for --weights and --model."
)
_mesh = cli.define_mesh()
_overrides = cli.define_overrides()

_EVALS = flags.DEFINE_string("evals", None, "Python file with a function get_evals().")
_DATASETS = flags.DEFINE_list("datasets", None, "Data sets by name, NAME or NAME=SOURCE.")
_EVALUATORS = flags.DEFINE_list("evaluators", None, "Evaluators of --datasets: zeroshot, probe ...")
_IMAGES = flags.DEFINE_string("images", None, "Folder of images to classify.")
_NAMES = flags.DEFINE_string("names", None, "Names file of a flat --images folder.")
_IMAGE = flags.DEFINE_string(
    "image", None, "Image file, or a folder of images for --detect and --segment."
)
_DETECT = flags.DEFINE_string("detect", None, "Names to detect in --image, separated by commas.")
_SEGMENT = flags.DEFINE_string("segment", None, "Names of masks in --image, with commas.")
_DETECTOR = flags.DEFINE_string("detector", None, "Weights or name of a detector, for --segment.")
_DRAW = flags.DEFINE_string("draw", None, "Folder for images with their detections or masks.")
_THRESHOLD = flags.DEFINE_float("threshold", None, "Score of a detection or of a mask.", 0, 1)
_LABELS = flags.DEFINE_string("labels", None, "Labels for --image, separated by commas.")
_MAX_IMAGE_PIXELS = flags.DEFINE_integer(
    "max_image_pixels",
    None,
    "Pixels above which an image is refused, 0: any number; default: that of the run, 179 million.",
    lower_bound=0,
)

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for evaluations.jsonl and TensorBoard.")
_TRACK = flags.DEFINE_bool("track", True, "Add the metrics to the run in its trackers.")
_CACHE = flags.DEFINE_string("cache", None, "Folder in which embeddings are kept.")

# Flags that choose the evaluations, of which at most one is given.
_SUBJECTS = (_EVALS, _DATASETS, _IMAGES, _IMAGE)


def main() -> None:
    """Evaluates the model of the flags and prints its metrics."""
    names = _check_flags()
    from vit_jax.recipes import read_evals

    evals = read_evals(_EVALS.value) if _EVALS.value else None
    # JAX is imported after the flags are checked: a mistyped flag is answered at once.
    from vit_jax import compilation_cache
    from vit_jax.parallel import processes

    processes.start()
    compilation_cache.use_default()
    show = cli.print_json if _JSON.value else cli.print_metrics
    if _FOLLOW.value:
        with contextlib.closing(_trackers()) as trackers:
            for opened in _follow():
                show({"step": opened.step, **_evaluate(opened, evals, trackers)})
        return
    opened = _open()
    if _DETECT.value is not None:
        _detect(opened, names)
    elif _SEGMENT.value is not None:
        _segment(opened, names)
    elif _IMAGE.value:
        show(opened.classify(_IMAGE.value, names))
    else:
        with contextlib.closing(_trackers()) as trackers:
            show(_evaluate(opened, evals, trackers))


def _evaluate(
    opened: "Evaluation", evals: Mapping[str, Any] | None, trackers: "Trackers"
) -> dict[str, float]:
    """Runs evaluations, those of the flags if none are given, and logs each."""
    from vit_jax.evaluators.results import EvaluationLog

    metrics: dict[str, float] = {}
    with contextlib.closing(EvaluationLog(_OUTPUT.value, _title(), opened.step)) as log:
        for found in opened.run_each(_drawn(evals if evals is not None else _blocks(opened))):
            log.write(found)
            trackers.write_scalars(opened.step, found)
            metrics |= found
    return metrics


def _trackers() -> "Trackers":
    """Opens the trackers of the run; none for weights without a run, and with another config."""
    from vit_jax.tracking import Trackers, joining
    from vit_jax.workdir import load_config, workdir_path

    if not (_WORKDIR.value and _TRACK.value) or _overrides():
        return Trackers({}, ".")
    workdir = workdir_path(_WORKDIR.value)
    blocks = joining(load_config(workdir).trackers.to_dict())
    try:
        return Trackers(blocks, workdir, first_step=None)
    except OSError as error:  # the folder of another user
        logger.warning("The trackers of the run get no records: %s", error)
        return Trackers({}, ".")


def _title() -> str:
    return " ".join([str(_WORKDIR.value or _WEIGHTS.value or _MODEL.value), *_overrides()])


def _follow() -> Iterator["Evaluation"]:
    from vit_jax.evaluation import follow
    from vit_jax.evaluators.results import evaluated_steps

    done = evaluated_steps(_OUTPUT.value, _title())
    return follow(str(_WORKDIR.value), done=done, **_run_options())


def _run_options() -> dict[str, Any]:
    return {
        "overrides": _overrides(),
        "cache": _CACHE.value,
        "mesh": _mesh(),
        "max_image_pixels": _MAX_IMAGE_PIXELS.value,
    }


def _open() -> "Evaluation":
    from vit_jax.evaluation import open_run, open_weights

    if _WORKDIR.value:
        return open_run(_WORKDIR.value, step=_STEP.value, **_run_options())
    return open_weights(
        _MODEL.value,
        _WEIGHTS.value,
        batch_size=_BATCH_SIZE.value,
        format=_FORMAT.value,
        tokenizer=_TOKENIZER.value,
        dtype=_DTYPE.value,
        mesh=_mesh(),
        cache=_CACHE.value,
        max_image_pixels=_MAX_IMAGE_PIXELS.value,
    )


def _detect(opened: "Evaluation", names: list[str]) -> None:
    from vit_jax.detection import command

    command.run(
        _model(opened),
        str(_IMAGE.value),
        names,
        threshold=_THRESHOLD.value,
        draw=_DRAW.value,
        as_json=_JSON.value,
    )


def _segment(opened: "Evaluation", names: list[str]) -> None:
    from vit_jax.models.registry import model_names
    from vit_jax.pretrained.model import create_model
    from vit_jax.segmentation import command

    detector = None
    if named := _DETECTOR.value:
        name, weights = (named, None) if named in model_names() else (None, named)
        limit = opened.embedder.max_image_pixels
        detector = create_model(name, weights, max_image_pixels=limit)
    command.run(
        _model(opened),
        str(_IMAGE.value),
        names,
        detector=detector,
        threshold=_THRESHOLD.value,
        draw=_DRAW.value,
        as_json=_JSON.value,
    )


def _model(opened: "Evaluation") -> "PretrainedModel":
    from vit_jax.pretrained.model import PretrainedModel

    embedder = opened.embedder
    return PretrainedModel(opened.spec, embedder.model, opened.params, embedder.max_image_pixels)


def _drawn(evals: Mapping[str, Any]) -> Mapping[str, Any]:
    """Evaluation blocks of which those of detectors draw, if --draw is given."""
    if _DRAW.value is None:
        return evals
    keys = {} if _THRESHOLD.value is None else {"draw_threshold": _THRESHOLD.value}
    drawn = {
        type_name: {
            name: {**block, "draw": f"{_DRAW.value}/{name}", **keys}
            if block.get("evaluator", type_name) == "detection"
            else block
            for name, block in blocks.items()
        }
        for type_name, blocks in evals.items()
    }
    if drawn == evals:
        raise UserError(
            f"--draw={_DRAW.value}: expected --detect, or an evaluation of the type 'detection'; "
            f"found {', '.join(evals) or 'none'}"
        )
    return drawn


def _blocks(opened: "Evaluation") -> Any:
    """Returns the evaluation blocks of the flags or of the run."""
    from vit_jax.evaluators.datasets import evaluation_blocks

    if _IMAGES.value:
        block = {
            "data": f"folder:{_IMAGES.value}",
            "names_file": _NAMES.value,
            "templates": opened.templates,
        }
        return {"zeroshot": {"images": block}}
    if _DATASETS.value:
        return evaluation_blocks(_EVALUATORS.value or _default_evaluators(opened), _DATASETS.value)
    return opened.evals


def _default_evaluators(opened: "Evaluation") -> list[str]:
    architecture = opened.spec.architecture
    if hasattr(architecture, "text"):
        return ["zeroshot", "retrieval", "detection", "phrase_grounding"]
    if getattr(architecture, "num_classes", 0):
        return ["classification"]
    raise UserError(
        "the model has neither a text encoder nor a classification head: choose evaluators of its "
        "features, as --evaluators=probe,knn"
    )


def _check_flags() -> list[str]:
    """Refuses flags that do not apply together; returns the names in --image."""
    if _WORKDIR.value and (_WEIGHTS.value or _MODEL.value):
        raise UserError("--workdir excludes --weights and --model: give one of them")
    if not (_WORKDIR.value or _WEIGHTS.value or _MODEL.value):
        raise UserError("no model to evaluate: give --workdir DIR, --weights FILE or --model NAME")
    if _STEP.value is not None and not _WORKDIR.value:
        raise UserError("--step applies to --workdir")
    if _overrides() and not _WORKDIR.value:
        raise UserError(f"--config.{_overrides()[0]} applies to --workdir")
    if _FOLLOW.value and (not _WORKDIR.value or _STEP.value is not None or _IMAGE.value):
        raise UserError("--follow applies to --workdir, without --step and --image")
    given = [flag for flag in _SUBJECTS if flag.value]
    if len(given) > 1:
        subjects = " and ".join(f"--{flag.name}" for flag in given)
        raise UserError(f"{subjects} exclude each other: give one of them")
    chosen = [flag for flag in (_LABELS, _DETECT, _SEGMENT) if flag.value is not None]
    words = chosen[0] if chosen else _LABELS
    if not (given or _WORKDIR.value or words.value is not None or _NAMES.value):
        raise UserError("weights come without evaluations: give --datasets or --evals")
    if _EVALUATORS.value and not _DATASETS.value:
        raise UserError("--evaluators applies to --datasets")
    if _NAMES.value and not _IMAGES.value:
        raise UserError("--names applies to --images")
    if len(chosen) > 1:
        subjects = " and ".join(f"--{flag.name}" for flag in chosen)
        raise UserError(f"{subjects} exclude each other: give one of them")
    if bool(_IMAGE.value) != bool(chosen):
        raise UserError(
            "--image needs --labels, --detect or --segment and vice versa: --image cat.png "
            '--labels "cat,dog"'
        )
    found = words is not _LABELS  # boxes or masks
    if _THRESHOLD.value is not None and not found and _DRAW.value is None:
        raise UserError("--threshold applies to --detect, --segment and --draw")
    if _DRAW.value and _LABELS.value is not None:
        raise UserError("--draw applies to --detect, --segment and to evaluations of detectors")
    if _DETECTOR.value is not None and _SEGMENT.value is None:
        raise UserError("--detector applies to --segment")
    names = [name.strip() for name in (words.value or "").split(",") if name.strip()]
    if _IMAGE.value and not names:
        raise UserError(
            f'--{words.name} is empty: expected labels separated by commas, as "cat,dog"'
        )
    if len(set(names)) < len(names):
        raise UserError(f"--{words.name} has a label twice: {words.value}")
    return names


if __name__ == "__main__":
    cli.run(
        main,
        stopped="stopped; the same command starts again, with --cache DIR after the embeddings "
        "that DIR holds",
        unwinds=True,
    )
