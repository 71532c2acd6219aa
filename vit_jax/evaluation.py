"""Models with parameters, opened for evaluation: a run, a weight file, or a registered name."""

import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vit_jax import workdir as workdir_lib
from vit_jax.checkpoint.manager import DIRECTORY, read_params, step_numbers, with_sharding
from vit_jax.config import model_spec
from vit_jax.data.images import MAX_PIXELS, read_image
from vit_jax.data.tokenizers import FILE_NAME as TOKENIZER_FILE
from vit_jax.data.tokenizers import Tokenizer, open_tokenizer
from vit_jax.errors import UserError
from vit_jax.evaluators.embedding import Embedder
from vit_jax.evaluators.suite import Suite, needs_objective
from vit_jax.experiment import build
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives.base import Objective
from vit_jax.parallel.mesh import DEFAULT_SIZES, batch_shards, fitting_sizes, make_mesh
from vit_jax.parallel.sharding import parameter_shardings
from vit_jax.paths import StrPath, absolute
from vit_jax.pretrained.folder_tokenizer import FILE_KINDS
from vit_jax.pretrained.model import create_model
from vit_jax.recipes import parse_value
from vit_jax.training.resume import first_difference
from vit_jax.training.variants import changed_config

logger = logging.getLogger(__name__)

Cache = str | pathlib.Path | None
# Keys of a run's config that its evaluation may change, blocks included.
CHANGEABLE = (
    *("model.image_size", "model.patch_size", "model.position_resize"),
    *("model.image.image_size", "model.image.patch_size", "model.image.position_resize"),
    *("model.inputs", "compute", "evals", "eval_batch_size"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model with parameters, and everything that is needed to evaluate it.

    Attributes:
        spec: architecture, image preprocessing and tokenizer.
        embedder: runs the model over images and texts.
        params: parameters, a nested dict of arrays on the devices.
        templates: prompt templates of `classify`.
        step: training step of the parameters; 0 for weights without a run.
        evals: evaluation blocks of the run; empty for weights without a run.
        build_objective: returns the objective of the run; None for weights without a run.
        read_step: reads the parameters of another checkpoint; None for weights without a run.
    """

    spec: ModelSpec
    embedder: Embedder
    params: Params
    templates: tuple[str, ...] = ("a photo of a {}.",)
    step: int = 0
    evals: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    build_objective: Callable[[], Objective] | None = None
    read_step: Callable[[int], Params] | None = None

    def at_step(self, step: int) -> "Evaluation":
        """The same model with the parameters of another checkpoint of its run.

        Args:
            step: step of the checkpoint.

        Raises:
            UserError: no such checkpoint, or a damaged one.
        """
        if self.read_step is None:
            raise UserError("weights without a run have no steps")
        return dataclasses.replace(self, params=self.read_step(step), step=step)

    def run(self, evals: Mapping[str, Any]) -> dict[str, float]:
        """Runs evaluation blocks.

        Args:
            evals: blocks by type and name, see `Suite`.

        Returns:
            Metrics by their full names.
        """
        return {name: value for metrics in self.run_each(evals) for name, value in metrics.items()}

    def run_each(self, evals: Mapping[str, Any]) -> Iterator[dict[str, float]]:
        """Runs evaluation blocks one after the other.

        Args:
            evals: blocks by type and name, see `Suite`.

        Yields:
            Metrics of one block by their full names.
        """
        yield from self.suite(evals).run_each(self.params)

    def suite(self, evals: Mapping[str, Any]) -> Suite:
        """Builds the evaluators of blocks; those whose data are not installed are logged.

        Args:
            evals: blocks by type and name, see `Suite`.
        """
        objective = None
        if self.build_objective is not None and needs_objective(evals):
            objective = self.build_objective()
        suite = Suite(evals, self.embedder, objective=objective)
        for name, reason in suite.skipped.items():
            logger.warning("%s is skipped: %s", name, reason)
        return suite

    def classify(self, image: Any, labels: Sequence[str]) -> dict[str, float]:
        """Computes the probability of each label for one image.

        Args:
            image: image of any kind, see `read_image`.
            labels: labels, which the prompt templates complete to texts.

        Returns:
            Probability of each label in descending order: softmax over the labels, or for a model
            with a logit bias, which the sigmoid loss trains, the independent probability of each.

        Raises:
            UserError: a model without a text encoder, or an image that cannot be read.
        """
        embedder, params = self.embedder, self.params
        embedder.require_text()
        pixels = read_image(image, max_pixels=embedder.max_image_pixels)
        images = embedder.image_embeddings(params, [{"image": pixels}])
        texts = embedder.class_embeddings(params, labels, self.templates)
        probabilities = embedder.probabilities(params, images @ texts.T)[0]
        order = np.argsort(-probabilities, kind="stable")
        return {labels[i]: float(probabilities[i]) for i in order}


def open_run(
    workdir: StrPath,
    *,
    step: int | None = None,
    ema: bool = True,
    overrides: Sequence[str] = (),
    cache: Cache = None,
    mesh: Mapping[str, int] | None = None,
    devices: list[Any] | None = None,
    max_image_pixels: int | None = None,
) -> Evaluation:
    """Opens a checkpoint of a run, without its optimizer state, on any devices.

    Args:
        workdir: folder of the run, local or gs://.
        step: step of the checkpoint; None for the newest intact one.
        ema: whether to read the moving average of the parameters, where the run has one.
        overrides: changes of config keys out of `CHANGEABLE`, as "model.image_size=448". A ViT
            resizes its positions and its patch embedding, by the rule `position_resize`.
        cache: folder in which embeddings are kept, see `Embedder`; None for none.
        mesh: sizes of the mesh axes, as {"fsdp": 4}, see `make_mesh`; None for `fsdp` and `tensor`
            of the run where the devices allow them, and otherwise for one replica per device.
        devices: devices of the mesh; None for all.
        max_image_pixels: number of pixels above which an image is refused, 0 for none; None for
            that of the run.

    Raises:
        UserError: not the folder of a run, no such checkpoint, a mesh that does not fit the
            devices, or a change that the parameters cannot follow.
    """
    workdir = workdir_lib.workdir_path(workdir)
    saved = _changed(workdir_lib.load_config(workdir), overrides)
    devices = jax.devices() if devices is None else devices
    config = saved.copy_and_resolve_references().unlock()
    fitting = fitting_sizes(saved.mesh.to_dict(), len(devices))
    sizes = fitting if mesh is None else {**DEFAULT_SIZES, **mesh}
    config.mesh.update(sizes)
    if max_image_pixels is None:  # runs of earlier versions had the default
        max_image_pixels = config.data.get("max_image_pixels", MAX_PIXELS)
    config.data.max_image_pixels = max_image_pixels
    # Evaluation has no training batches: any size serves that the devices divide.
    config.batch_size = batch_shards(make_mesh(**sizes, devices=devices))
    config.grad_accum_steps, config.token_budget = 1, 0
    experiment = build(config.lock(), workdir=workdir, devices=devices)
    spec = experiment.spec
    if spec.tokenizer is not None:
        _check_saved_tokenizer(workdir)
    if (tokenizer := experiment.tokenizer) is not None:
        check_tokenizer(tokenizer, str(spec.tokenizer), spec, str(workdir))
        spec = dataclasses.replace(spec, tokenizer=f"saved:{absolute(workdir)}")
    model = experiment.model
    abstract = with_sharding(model.shapes(), parameter_shardings(model, experiment.mesh))
    read = functools.partial(
        read_params, workdir, abstract, ema=ema and experiment.optim.shared.ema_decay > 0
    )
    params, found_step = read(step=step)
    return Evaluation(
        spec=spec,
        embedder=experiment.embedder(cache),
        params=params,
        templates=tuple(saved.data.templates),
        step=found_step,
        evals=saved.evals.to_dict(),
        build_objective=lambda: experiment.objective,
        read_step=lambda step: read(step=step)[0],
    )


def _changed(saved: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The config of a run with changes for its evaluation, which keep the parameters."""
    if not overrides:
        return saved
    config = saved.copy_and_resolve_references().unlock()
    # A saved config states the sizes of its inputs, which follow from the model.
    inputs = config.model.get("inputs", {})
    config.model.inputs = {key: inputs[key] for key in inputs if key not in ("size", "patch_size")}
    pairs = [override.partition("=") for override in overrides]
    values = {key: parse_value(text) for key, _, text in pairs}
    changed = changed_config(config, values, "config", CHANGEABLE, {"stages": {}, "draw": {}})
    shapes = [ModelDef(model_spec(each).architecture).shapes() for each in (saved, changed)]
    if found := first_difference(*shapes):
        name, expected, other = found
        raise UserError(
            f"the parameters of the run cannot follow {', '.join(overrides)}: {name} is "
            f"{expected}, and would be {other}"
        )
    return changed


def follow(
    workdir: StrPath, *, done: Collection[int] = (), poll_seconds: float = 5.0, **options: Any
) -> Iterator[Evaluation]:
    """Opens the checkpoints of a run in order of their steps as they appear, until it is complete.

    Reads only, so that the run may train elsewhere. A checkpoint that the run deletes before it is
    read is left out with a warning.

    Args:
        workdir: folder of the run, local or gs://.
        done: steps that are left out.
        poll_seconds: seconds between two looks at the folder.
        **options: further arguments of `open_run`.

    Raises:
        UserError: not the folder of a run.
    """
    folder, last = workdir_lib.workdir_path(workdir) / DIRECTORY, -1
    workdir_lib.load_config(workdir)
    opened: Evaluation | None = None
    while True:
        complete = workdir_lib.is_complete(workdir)  # before the look at the steps
        for step in [step for step in sorted(step_numbers(folder)) if step > last]:
            last = step
            if step in done:
                continue
            try:
                opened = opened.at_step(step) if opened else open_run(workdir, step=step, **options)
            except Exception:  # a folder that vanishes can raise almost anything
                if step in step_numbers(folder):
                    raise
                logger.warning("Step %d is left out: the run has deleted its checkpoint.", step)
                continue
            yield opened
        if complete:
            return
        time.sleep(poll_seconds)


def open_weights(
    name: str | None,
    weights: str | None,
    *,
    batch_size: int,
    format: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    mesh: Mapping[str, int] | None = None,
    cache: Cache = None,
    max_image_pixels: int | None = None,
) -> Evaluation:
    """Opens a weight file, or a registered model with fresh parameters.

    Args:
        name: name of the model, as for `create_model`; None for weights that come with their
            description.
        weights: weight file; None for fresh parameters.
        batch_size: examples per batch over all devices.
        format: format of the file; None to recognize it.
        tokenizer: spec of the tokenizer, for a model whose tokenizer needs a file.
        dtype: compute type, "float32" or "bfloat16".
        mesh: sizes of the mesh axes, as {"fsdp": 4}, see `make_mesh`; None for one replica per
            device.
        cache: folder in which embeddings are kept, see `Embedder`; None for none.
        max_image_pixels: number of pixels above which an image is refused, 0 for none; None for
            the default.

    Raises:
        UserError: weights or a tokenizer that do not fit the model, or a mesh that does not fit
            the devices.
    """
    grid = make_mesh(**(mesh or {}), devices=None)
    model = create_model(name, weights, format=format, dtype=dtype)
    if weights is None:
        logger.warning("%s has no weights (--weights FILE): its parameters are random.", name)
    embedder = Embedder(
        model.definition,
        inputs=model.spec.inputs,
        mesh=grid,
        tokenizer=_open_tokenizer(tokenizer, model.spec, weights or str(name)),
        batch_size=batch_size,
        cache=cache,
        max_image_pixels=MAX_PIXELS if max_image_pixels is None else max_image_pixels,
    )
    params = jax.device_put(model.params, parameter_shardings(model.definition, grid))
    spec = dataclasses.replace(model.spec, tokenizer=tokenizer or model.spec.tokenizer)
    return Evaluation(spec=spec, embedder=embedder, params=params)


def _open_tokenizer(given: str | None, spec: ModelSpec, title: str) -> Tokenizer | None:
    """Opens the given tokenizer, or that of the model; None for a model without text."""
    own = spec.tokenizer
    if own is None:
        if given:
            raise UserError(f"--tokenizer={given}: {title} has no text encoder")
        return None
    if own in FILE_KINDS and not given:
        logger.warning("Only images can be evaluated: no --tokenizer=%s:FILE is given.", own)
        return None
    text = spec.architecture.text
    tokenizer = open_tokenizer(
        given or own, vocab_size=text.vocab_size, context_length=text.context_length
    )
    check_tokenizer(tokenizer, own, spec, title)
    return tokenizer


def _check_saved_tokenizer(workdir: epath.Path) -> None:
    if not (workdir / TOKENIZER_FILE).is_file():
        raise UserError(f"{workdir} has no {TOKENIZER_FILE}, which the run saved at its start")


def check_tokenizer(tokenizer: Tokenizer, own: str, spec: ModelSpec, title: str) -> None:
    """Refuses a tokenizer whose ids have another meaning for the weights.

    Args:
        tokenizer: tokenizer to be used.
        own: spec of the tokenizer with which the weights were trained.
        spec: model of the weights.
        title: name of the weights in error messages.

    Raises:
        UserError: the tokenizers differ in kind, or the model pools its text at a token that this
            tokenizer does not put at the end.
    """
    kind = own.partition(":")[0]
    # One vocabulary is published in files of both kinds.
    same = FILE_KINDS if kind in FILE_KINDS else (kind,)
    if kind != "saved" and tokenizer.kind not in same:
        raise UserError(
            f"{title} was trained with a tokenizer of the kind {kind!r}, found {tokenizer.kind!r}: "
            "its ids have other meanings"
        )
    if getattr(spec.architecture.text, "pool", None) == "eot" and not tokenizer.end_is_largest:
        raise UserError(
            f"{title} pools its text at the largest id, which is not this tokenizer's end of text"
        )
