"""The keys of a run's config that belong to no component, with default, meaning and unit.

A recipe in `configs/` is a file with `get_config(arg="")` that takes these defaults and changes a
few of them:

    from vit_jax.config import default_config

    def get_config(arg: str = ""):
        config = default_config(model="clip_vit_b32")
        config.optim.lr = 5e-4
        return config

The keys of a model, objective, optimizer, evaluator, hook or tracker are the fields of its own
dataclass; a block names the component and holds the keys that differ from their defaults:

    config.model = {"name": "swin_t", "num_classes": 10}
    config.objective = {"name": "classification", "mixup_alpha": 0.8}

Lengths come in the field's units. A group such as `total_*` or `warmup_*` has one key per unit; at
most one of them is set, zero means "not set".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.components import parse
from vit_jax.data.crops import Crops, CropsConfig
from vit_jax.data.detection import DetectionConfig
from vit_jax.data.images import MAX_PIXELS, check_max_pixels
from vit_jax.errors import UserError, unknown_key
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.spec import ModelSpec
from vit_jax.recipes import OPEN_BLOCKS


def default_config(
    model: str, *, objective: str = "contrastive", optimizer: str = "adamw"
) -> ConfigDict:
    """The defaults of a run.

    Args:
        model: name of a registered model, see `vit_jax.list_models`.
        objective: name of the objective, see `vit_jax.objectives`.
        optimizer: name of the optimizer, see `vit_jax.training.optimizers`.

    Returns:
        A locked ConfigDict: assigning an unknown key is an error. The blocks of components take any
        key; a key that does not apply to the component is refused when the run is built.

    Example:
        >>> config = default_config("vit_b16", objective="classification")
        >>> config.optim.lr = 3e-3
        >>> config.objective.name, config.model.name
        ('classification', 'vit_b16')
    """
    config = ConfigDict()
    config.seed = 0  # PRNG seed for parameters, data order and augmentation

    # Registered model; further keys change fields of its architecture, `inputs.*` its image
    # preprocessing, `tokenizer` its tokenizer.
    config.model = _model_block(model)

    config.compute = ConfigDict()
    config.compute.dtype = "float32"  # activations: float32 or bfloat16; parameters are float32
    config.compute.scan = True  # scan the blocks (one trace) or unroll them
    config.compute.remat = "none"  # recomputed in the backward pass: none, mlp, dots, full (most)
    # Implementation of attention: auto (by platform and shape), pallas, splash, cudnn, xla, einsum.
    config.compute.attention = "auto"

    config.mesh = ConfigDict()
    config.mesh.data = -1  # number of replicas; -1: all devices that the other axes leave
    config.mesh.fsdp = 1  # devices that share the parameters of a replica
    config.mesh.tensor = 1  # devices that share the heads and hidden units of a layer
    config.mesh.zero1 = False  # shard optimizer state and EMA over data as well

    config.data = ConfigDict()
    config.data.train = ""  # source, as emoji:train or tar:/path/*.tar; see data/sources
    # Transforms separated by |, as flip|randaugment; see data/augment. Empty: the model's own
    # preprocessing, as in evaluation.
    config.data.augment = ""
    config.data.repeats = 1  # augmented views per image in a batch (Hoffer et al. 2020)
    config.data.templates = ("{}",)  # prompt templates; one is drawn per caption
    # Captions per image and step, all of them positives of the objective contrastive; one is drawn
    # at random by default.
    config.data.captions_per_image = 1
    # An epoch takes every example, or, with field names, one random example per combination of
    # their values: ("name",) balances names with few and with many images.
    config.data.group_by = ()
    # Fraction of examples that may be broken, of at least 1,000 read; each is logged and skipped.
    config.data.max_broken_fraction = 0.01
    # Number of pixels above which an image counts as broken, before it is decoded; 0: none.
    config.data.max_image_pixels = MAX_PIXELS
    # Sizes of a batch of images with boxes, see data/detection.
    config.data.detection = ConfigDict(dataclasses.asdict(DetectionConfig()))
    # Several crops of each image for self-distillation, see data/crops.
    config.data.crops = ConfigDict(dataclasses.asdict(CropsConfig()))
    config.data.workers = 0  # reader processes; 0: threads of this process

    config.batch_size = 0  # examples per step, over all devices
    config.grad_accum_steps = 1  # microbatches per batch; the loss still sees the whole batch
    # Image tokens (patches) that a device processes at once, at most: a batch has more microbatches
    # than `grad_accum_steps` where it must. 0: no limit.
    config.token_budget = 0
    config.total_steps = 0  # length of training in steps
    config.total_epochs = 0.0  # length of training in epochs
    config.total_examples = 0  # length of training in examples

    # name -> {"until_percent": ..., keys that differ until then}; see training/stages.
    config.stages = ConfigDict()
    # Key -> values, one of which is drawn for each batch; see training/variants.
    config.draw = ConfigDict()

    config.objective = ConfigDict({"name": objective})  # loss and its keys, see objectives

    config.init = ConfigDict()  # initial parameters, for fine-tuning
    config.init.weights = ""  # weight file of any known format, or workdir of an earlier run
    config.init.model = ""  # registered model of the weights, where the file does not name it
    # Regular expressions of parameter paths, as ("head/.*",), that keep their fresh values.
    config.init.fresh = ()
    # Words whose token embeddings are the first values of `text/prompt`, as "a photo of a".
    config.init.prompt = ""

    # Optimizer, learning rate and schedule, see training/optimizers.
    config.optim = ConfigDict({"name": optimizer})

    config.log_steps = 10  # steps between lines of metrics.jsonl
    config.checkpoint_steps = 0  # interval of checkpoints; the last step always saves one
    config.checkpoint_epochs = 0.0  # interval of checkpoints in epochs
    config.checkpoint_examples = 0  # interval of checkpoints in examples
    config.checkpoint_percent = 10.0  # interval of checkpoints in percent of the run
    config.keep_checkpoints = 2  # number of newest checkpoints that are kept
    config.keep_every_steps = 0  # steps whose multiples are kept for ever; 0: none
    config.keep_best = ""  # metric whose best checkpoint is kept too, as zeroshot/x/top1
    # What follows a loss or gradient that is NaN or infinite: stop (with a dump), skip (the
    # update) or rollback (to the newest checkpoint, without that batch).
    config.non_finite = "stop"
    config.non_finite_limit = 10  # consecutive such steps after which skip and rollback stop too
    config.watchdog_seconds = 1800.0  # time without a step until all stacks are printed; 0: never
    config.hooks = ConfigDict()  # name -> {"name": "package.module:Hook", ...}; see training/hooks
    config.trackers = ConfigDict()  # name -> {keys}; see tracking
    config.trackers.jsonl = ConfigDict()  # lines of metrics.jsonl
    config.trackers.tensorboard = ConfigDict()  # events of TensorBoard

    config.eval_steps = 0  # interval of evaluations; the last step is always evaluated
    config.eval_epochs = 0.0  # interval of evaluations in epochs
    config.eval_examples = 0  # interval of evaluations in examples
    config.eval_percent = 0.0  # interval of evaluations in percent of the run
    config.eval_batch_size = 256  # examples per step of evaluation, over all devices
    # Examples of each evaluation whose predictions are stored after the last step, about 50 bytes
    # each, see evaluators/predictions; 0: none.
    config.eval_predictions = 50_000
    config.evals = ConfigDict()  # evaluator -> name -> {keys}; see evaluators
    config.lock()
    for block in OPEN_BLOCKS:
        config[block].unlock()
    return config


def _model_block(name: str) -> ConfigDict:
    """A block with the name, and empty blocks for its parts, so that their keys can be set."""
    block = ConfigDict({"name": name, "inputs": {}})
    architecture = registry.model_spec(name).architecture
    for field in dataclasses.fields(architecture):
        if dataclasses.is_dataclass(getattr(architecture, field.name)):
            block[field.name] = ConfigDict()
    return block


def model_spec(config: ConfigDict) -> ModelSpec:
    """The model of `config.model`: the registered one with the block's changes.

    Raises:
        UserError: unknown name or key.
    """
    fields = config.model.to_dict()
    name = fields.pop("name", None)
    inputs = fields.pop("inputs", {})
    if not isinstance(name, str | None):
        raise UserError(f"config.model.name={name!r}: expected the name of a model")
    base = registry.model_spec(name) if name else None
    if base is None and "architecture" not in fields:
        raise UserError("config.model.name is missing: expected the name of a registered model")
    tokenizer = fields.pop("tokenizer", base.tokenizer if base else None)
    architecture = registry.parse_architecture(
        fields, "config.model", base=base.architecture if base else None
    )
    stated = {key: inputs.pop(key) for key in ("size", "patch_size") if key in inputs}
    spec = ModelSpec(
        architecture=architecture,
        inputs=parse(
            ImageInputs, inputs, "config.model.inputs", base=base.inputs if base else ImageInputs()
        ),
        tokenizer=tokenizer,
    )
    for key, value in stated.items():
        value, own = tuple(value) if key == "size" else value, getattr(spec.inputs, key)
        if value != own:
            model_key = {"size": "image_size"}.get(key, key)
            raise UserError(
                f"config.model.inputs.{key}={value}: the {model_key} of the model is {own}; set "
                f"config.model.{model_key} instead"
            )
    return spec


def resolved(
    config: ConfigDict, spec: ModelSpec, objective: Mapping[str, Any], optim: Mapping[str, Any]
) -> ConfigDict:
    """A config with every key of its model, objective and optimizer.

    Args:
        config: config of a run.
        spec: its model.
        objective: keys of its objective.
        optim: block of its optimizer.
    """
    fields = config.to_dict()
    model = {"name": fields["model"].get("name"), **registry.describe(spec.architecture)}
    model |= {"inputs": dataclasses.asdict(spec.inputs), "tokenizer": spec.tokenizer}
    loss = {"name": fields["objective"]["name"], **objective}
    return ConfigDict({**fields, "model": model, "objective": loss, "optim": dict(optim)})


def batch_shapes(config: ConfigDict) -> dict[str, Any]:
    """Shapes of the boxes, crops and captions in a batch, as `data.batches` takes them.

    Raises:
        UserError: see `detection` and `crops`.
    """
    return {
        "detection": detection(config),
        "crops": crops(config),
        "captions_per_image": config.data.captions_per_image,
    }


def detection(config: ConfigDict) -> DetectionConfig:
    """Sizes of a batch of images with boxes, `config.data.detection`.

    Raises:
        UserError: an unknown key, or a value out of range.
    """
    return parse(DetectionConfig, config.data.detection.to_dict(), "config.data.detection")


def crops(config: ConfigDict) -> Crops:
    """Shapes of several crops of an image, of `config.data.crops` and the model.

    Raises:
        UserError: an unknown key, or a value out of range.
    """
    architecture = model_spec(config).architecture
    tower = getattr(architecture, "image", architecture)
    keys = parse(CropsConfig, config.data.crops.to_dict(), "config.data.crops")
    return Crops(keys, getattr(tower, "grid", (1, 1)))


def steps(block: Any, prefix: str, *, batch_size: int, epoch_examples: int, total: int = 0) -> int:
    """Length of a key group in steps, whichever of its units is set; 0 where none is.

    Args:
        block: object with the keys of the group: the config for `total_*`, the parsed
            `config.optim` for `warmup_*`.
        prefix: name of the group, without the underscore.
        batch_size: examples per step.
        epoch_examples: examples per epoch.
        total: length of the run in steps, for percent.

    Raises:
        UserError: more than one unit is set, or one is negative.
    """
    in_steps = {
        "steps": lambda n: n,
        "epochs": lambda n: n * epoch_examples / batch_size,
        "examples": lambda n: n / batch_size,
        "percent": lambda n: n / 100 * total,
    }
    found = {unit: getattr(block, f"{prefix}_{unit}", 0) for unit in in_steps}
    found = {unit: n for unit, n in found.items() if n}
    if len(found) > 1:
        keys = ", ".join(f"{prefix}_{unit}={n}" for unit, n in found.items())
        raise UserError(f"{keys}: more than one unit is set; set all but one to 0")
    for unit, number in found.items():
        if number < 0:
            raise UserError(f"{prefix}_{unit}={number}: expected a positive number")
        return max(1, round(in_steps[unit](number)))
    return 0


def validate(config: ConfigDict) -> None:
    """Checks the keys that belong to no component against `default_config`.

    Raises:
        UserError: an unknown or missing key, or a length that is not set.
    """
    _check_keys(config, default_config("vit_b16"), "config")
    check_max_pixels(config.data.max_image_pixels, "config.data.max_image_pixels")
    if config.batch_size <= 0:
        raise UserError("config.batch_size is not set: expected a positive number of examples")
    if config.token_budget < 0:
        raise UserError(f"config.token_budget={config.token_budget}: expected 0 or more tokens")
    if not (config.total_steps or config.total_epochs or config.total_examples):
        raise UserError("no length is set: set total_steps, total_epochs or total_examples")


def with_defaults(config: ConfigDict) -> ConfigDict:
    """Adds keys that a saved config lacks because they came with a later version.

    Args:
        config: config of a run as it was saved; changed in place.

    Returns:
        The same config, locked. Blocks of components have no defaults here; they are not changed.
    """
    _fill(config, default_config("vit_b16"))
    return config.lock()


def _fill(block: ConfigDict, defaults: ConfigDict) -> None:
    for key, default in defaults.items():
        if key not in block:
            block[key] = default
        elif isinstance(default, ConfigDict) and key not in OPEN_BLOCKS:
            _fill(block[key], default)


def _check_keys(config: ConfigDict, reference: ConfigDict, path: str) -> None:
    for key in config:
        if key not in reference:
            raise unknown_key(key, path, reference)
    for key, default in reference.items():
        if key not in config:
            raise UserError(f"config key {path}.{key} is missing; start from default_config()")
        if path == "config" and key in OPEN_BLOCKS:
            continue
        if isinstance(default, ConfigDict):
            if not isinstance(config[key], ConfigDict):
                raise UserError(f"{path}.{key} is not a block of keys")
            _check_keys(config[key], default, f"{path}.{key}")
