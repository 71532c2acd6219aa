"""Every key of a run's configuration, once, with its default, meaning and unit.

A recipe in `configs/` is a file with `get_config(arg="")` that takes these defaults and changes a
few of them. The result is locked: a mistyped key is an error that names the nearest one.

    from vit_jax.config import default_config

    def get_config(arg: str = ""):
        config = default_config(model="clip_vit_b32")
        config.optim.lr = 5e-4
        return config

Lengths of time come in the field's units. A key group such as `total_*` or `warmup_*` has one key
a unit; exactly one of them is set, zero means "not set".
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict, config_dict

from vit_jax.errors import UserError, unknown
from vit_jax.models import families, registry
from vit_jax.models.spec import ModelSpec, Preprocess

# Architecture fields whose default is None, with the type that a command line may give them.
_OPTIONAL_FLOATS = ("init_logit_bias",)


def default_config(model: str) -> ConfigDict:
    """The defaults of every key, for a registered model.

    Args:
        model: a name from `vit_jax.list_models()`. Its architecture is copied into
            `config.model`, where every field can be changed.

    Returns:
        A locked ConfigDict; `config.evals` alone accepts new entries.
    """
    spec = registry.model_spec(model)
    config = ConfigDict()
    config.seed = 0  # of parameters, data order and augmentation

    config.model = _architecture(spec)
    config.preprocess = ConfigDict(dataclasses.asdict(spec.preprocess))
    # clip, sentencepiece:FILE, huggingface:FILE, saved:DIR (see data/tokenizers), or "trained":
    # byte-level BPE learned from the training captions; None without text.
    config.tokenizer = config_dict.placeholder(str)
    config.tokenizer = spec.tokenizer

    config.compute = ConfigDict()
    config.compute.dtype = "float32"  # of activations: float32 or bfloat16; parameters: float32
    config.compute.scan = True  # scan the blocks (one trace) or unroll them
    config.compute.remat = "none"  # recomputed in the backward pass: none, mlp, dots, full (most)

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that hold replicas; -1 takes what the others leave
    config.mesh.fsdp = 1  # devices that share the parameters of a replica
    config.mesh.tensor = 1  # devices that share a layer's heads and hidden units
    config.mesh.zero1 = False  # split optimizer state and moving average over data as well

    config.data = ConfigDict()
    config.data.train = ""  # source, as emoji:train or tar:/path/*.tar; see data/sources
    config.data.augment = ""  # transforms separated by |, as flip|randaugment; see data/augment
    # Views of an image in a batch, each augmented on its own (Hoffer et al. 2020); an epoch has as
    # many examples as before, of fewer images.
    config.data.repeats = 1
    config.data.templates = ("{}",)  # one is drawn for each caption
    # An epoch takes every example, or, with names of fields, one of each combination of their
    # values, drawn at random: ("name",) balances names with few and with many images.
    config.data.group_by = ()
    # Fraction of examples that may be broken, of at least 1,000 read; each is named and passed over.
    config.data.max_broken_fraction = 0.01
    config.data.workers = 0  # processes that read and augment; 0 uses threads of this one

    config.batch_size = 0  # global, examples a step
    config.grad_accum_steps = 1  # parts of a batch that go through the towers one by one
    config.total_steps = 0  # length of training
    config.total_epochs = 0.0
    config.total_examples = 0

    config.objective = ConfigDict()
    # contrastive (CLIP, SigLIP: models of the family clip), classification (models with a head),
    # distillation (DeiT: classification with a teacher) or masked_reconstruction (family mae).
    config.objective.name = "contrastive"
    config.objective.loss = "softmax"  # softmax or sigmoid, of contrastive and classification
    config.objective.form = "gathered"  # contrastive: gathered, ring, tiled; same loss, less memory
    config.objective.tile_size = 1024  # pairs a side, for tiled
    config.objective.label_smoothing = 0.0  # classification
    config.objective.mixup_alpha = 0.0  # classification; with cutmix, each batch draws one of them
    config.objective.cutmix_alpha = 0.0
    config.objective.distillation = "hard"  # hard or soft, see objectives/distillation.py
    config.objective.distillation_alpha = 0.5  # weight of the teacher's loss
    config.objective.distillation_temperature = 3.0  # of soft distillation
    config.objective.mask_ratio = 0.75  # masked_reconstruction: fraction of patches hidden
    config.objective.normalize_pixels = True  # ... whether each patch's target is normalised

    config.init = ConfigDict()  # of the first parameters, for fine-tuning
    config.init.weights = ""  # weight file of any known format, or folder of an earlier run
    config.init.model = ""  # registered name, where they belong to a model that they do not tell
    # Patterns of paths, as ("head/.*",): fresh in this model, left out of the weights.
    config.init.fresh = ()

    config.teacher = ConfigDict()  # of distillation; frozen, evaluation mode
    config.teacher.weights = ""  # weight file of any known format, or folder of an earlier run
    config.teacher.model = ""  # registered name, where the file does not tell its model

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # adamw, muon, lamb, lars, lion, sgd, adafactor
    config.optim.lr = 1e-3  # peak learning rate
    # After the warm-up: cosine, linear (both to min_lr), rsqrt (as one over the root of the steps),
    # constant.
    config.optim.schedule = "cosine"
    config.optim.min_lr = 0.0
    config.optim.rsqrt_timescale = 10_000  # steps in which rsqrt falls by the root of two
    config.optim.warmup_steps = 0  # linear from 0
    config.optim.warmup_epochs = 0.0
    config.optim.warmup_examples = 0
    config.optim.warmup_percent = 0.0
    config.optim.cooldown_steps = 0  # at the end, the schedule times a line to 0
    config.optim.cooldown_epochs = 0.0
    config.optim.cooldown_examples = 0
    config.optim.cooldown_percent = 0.0
    # Times the learning rate; of matrices alone. Decoupled, but for sgd and lars, whose gradient it
    # is added to.
    config.optim.weight_decay = 0.0
    config.optim.b1 = 0.9  # first moment; momentum of sgd, lars and adafactor
    config.optim.b2 = 0.999  # second moment; for adafactor its largest value
    config.optim.eps = 1e-8  # adamw, muon, lamb
    config.optim.nesterov = False  # sgd
    config.optim.mu_dtype = "float32"  # of the first moment: float32 or bfloat16
    config.optim.grad_clip_norm = 0.0  # global norm; 0 for none
    # Layer-wise learning rates: lr * layer_decay^(layers above), 1 for equal ones.
    config.optim.layer_decay = 1.0
    # Patterns (regular expressions) of the paths of parameters that stay as they are, as
    # ("image/.*",); the table that a run prints has the paths.
    config.optim.freeze = ()
    config.optim.ema_decay = 0.0  # of the evaluated average of the weights; 0 for none

    config.log_steps = 10  # between lines of metrics.jsonl
    config.checkpoint_steps = 0  # between checkpoints; the last step always makes one
    config.checkpoint_percent = 10.0
    config.keep_checkpoints = 2  # newest ones kept
    config.keep_every_steps = 0  # and those of multiples of this many steps; 0 for none
    config.keep_best = ""  # and the one with the highest of this metric, as zeroshot/x/top1
    # A loss or gradient that is not finite: stop with a dump; skip the update; rollback to the
    # newest checkpoint and on from there without that batch.
    config.non_finite = "stop"
    config.non_finite_limit = 10  # such steps in a row after which skip and rollback stop as well
    config.watchdog_seconds = 1800.0  # without a step, until every thread's place is printed; 0 off
    config.eval_steps = 0  # between evaluations; the last step always makes one
    config.eval_percent = 0.0

    config.eval_batch_size = 256  # global, examples a step of an evaluation
    config.evals = ConfigDict()  # name -> {type, ...}; see vit_jax/evaluators
    config.lock()
    config.evals.unlock()
    return config


def _architecture(spec: registry.ModelSpec) -> ConfigDict:
    fields = ConfigDict(families.describe(spec.architecture))
    for key in _OPTIONAL_FLOATS:
        if key in fields and fields[key] is None:
            fields[key] = config_dict.placeholder(float)
    return fields


def steps(
    config: ConfigDict, prefix: str, *, batch_size: int, epoch_examples: int, total: int = 0
) -> int:
    """Length of a key group in steps, whichever of its units is set; 0 where none is.

    Args:
        config: block that holds the group, as `config` for `total_*`, `config.optim` for
            `warmup_*`.
        prefix: name of the group, without the underscore.
        batch_size: examples a step.
        epoch_examples: examples in an epoch.
        total: steps of the whole run, for percent.

    Raises:
        UserError: more than one unit is set, or one is negative.
    """
    in_steps = {
        "steps": lambda n: n,
        "epochs": lambda n: n * epoch_examples / batch_size,
        "examples": lambda n: n / batch_size,
        "percent": lambda n: n / 100 * total,
    }
    found = {unit: config.get(f"{prefix}_{unit}", 0) for unit in in_steps}
    found = {unit: n for unit, n in found.items() if n}
    if len(found) > 1:
        keys = ", ".join(f"{prefix}_{unit}={n}" for unit, n in found.items())
        raise UserError(f"{keys}: more than one unit is set; set all but one to 0")
    for unit, number in found.items():
        if number < 0:
            raise UserError(f"{prefix}_{unit}={number}: expected a positive number")
        return max(1, round(in_steps[unit](number)))
    return 0


def validate(config: Any) -> None:
    """Refuses a config whose keys or types are not those of `default_config`.

    A recipe that starts from `default_config` cannot go wrong here; one that builds its own
    ConfigDict, or comes from a checkpoint of another version, can.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config returned {type(config).__name__}, expected a ConfigDict")
    reference = default_config("clip_vit_b32")
    _check_keys(config, reference, "config", skip=("model", "evals"))
    build_architecture(config)
    if config.batch_size <= 0:
        raise UserError("config.batch_size is not set: expected a positive number of examples")
    if not (config.total_steps or config.total_epochs or config.total_examples):
        raise UserError("no length is set: set total_steps, total_epochs or total_examples")


def build_architecture(config: ConfigDict) -> tuple[str, Any]:
    """The model's family and its architecture dataclass, from `config.model`."""
    architecture = families.parse_family(config.model.to_dict(), "config.model")
    return families.family_of(architecture), architecture


def build_spec(config: ConfigDict) -> ModelSpec:
    """The architecture and preprocessing of a config; the tokenizer is the run's own affair."""
    return ModelSpec(
        architecture=build_architecture(config)[1],
        preprocess=families.parse(Preprocess, config.preprocess.to_dict(), "preprocess"),
    )


def _check_keys(config: ConfigDict, reference: ConfigDict, path: str, skip: tuple = ()) -> None:
    for key in config:
        if key not in reference:
            raise unknown(f"{path}.{key}", [f"{path}.{k}" for k in reference], "config key")
    for key, default in reference.items():
        if key not in config:
            raise UserError(f"config key {path}.{key} is missing; start from default_config()")
        if key in skip:
            continue
        if isinstance(default, ConfigDict):
            if not isinstance(config[key], ConfigDict):
                raise UserError(f"{path}.{key} is not a block of keys")
            _check_keys(config[key], default, f"{path}.{key}")
