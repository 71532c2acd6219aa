"""The model of a weight file: architecture, image preprocessing and tokenizer.

What the file and its folder state is used. A name given by the user supplies the rest.
"""

import dataclasses
import logging
from typing import Any

from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs
from vit_jax.models import registry
from vit_jax.models.spec import ModelSpec, image_size
from vit_jax.paths import StrPath
from vit_jax.pretrained import huggingface, native, open_clip, timm
from vit_jax.pretrained.folder_tokenizer import folder_tokenizer
from vit_jax.pretrained.weight_files import open_known, read_description, undescribed
from vit_jax.weights import loading
from vit_jax.weights.containers.reading import split_part
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.layers.transformers import NAME as TRANSFORMERS
from vit_jax.weights.layers.transformers_flax import NAME as TRANSFORMERS_FLAX
from vit_jax.weights.loading import Source, differing_fields

logger = logging.getLogger(__name__)

# Fields that change no tensor, or only the size of a table: without a statement of the folder a
# mistake in them would not be noticed.
SILENT = frozenset(
    (
        "activation",
        "head_activation",
        "norm_epsilon",
        "num_heads",
        "pool",
        "causal",
        "end_id",
        "image_size",
        "context_length",
    )
)


# Fields that determine the shapes of most tensors. If they differ, the weights belong to another
# model than the named one, and loading fails with a list of the differences.
SIZES = ("patch_size", "width", "depth", "depths", "mlp_dim", "mlp_ratio", "window_size")


# Fields that determine the sizes of tables and kernels, which can be resized.
RESOLUTION = ("image_size", "patch_size", "kernel_size", "position_grid", "context_length")


@dataclasses.dataclass(frozen=True)
class FileModel:
    """The model of a weight file.

    Attributes:
        source: architecture of the tensors.
        inputs: image preprocessing; None if it is unknown.
        tokenizer: spec of the tokenizer; None if there is no text or if it is unknown.
    """

    source: Source
    inputs: ImageInputs | None
    tokenizer: str | None

    @property
    def architecture(self) -> Any:
        """The architecture for images of the size of `inputs`."""
        architecture = self.source.architecture
        if self.inputs is None or 0 in self.inputs.size:
            return architecture
        return with_image_size(architecture, self.inputs.size, "the size of the image processor")

    def spec(self, title: str) -> ModelSpec:
        """Returns the spec of the model.

        Args:
            title: name of the weights in the error message.

        Raises:
            UserError: the image preprocessing is unknown.
        """
        if self.inputs is None:
            raise UserError(
                f"{title} has no {huggingface.PREPROCESSOR} and no {huggingface.PROCESSOR} beside "
                "it, so that the image preprocessing is unknown; name the model"
            )
        return ModelSpec(
            architecture=self.architecture, inputs=self.inputs, tokenizer=self.tokenizer
        )


def identify(
    path: StrPath,
    named: ModelSpec | None = None,
    format: str | None = None,
    *,
    default: ModelSpec | None = None,
    headless: bool = False,
) -> FileModel:
    """Determines the model of a weight file without reading tensors.

    Args:
        path: weight file, see `open_weights`.
        named: model that the user names; None for weights that describe theirs.
        format: name of the format; None recognises it from the tensor names.
        default: model of weights that neither describe theirs nor are named.
        headless: whether the classification head of the file does not matter.

    Raises:
        UserError: the file cannot be read; its model is not available here; or it is not described
            and `named` is None.
    """
    file, known = open_known(path, named.architecture if named else None, format)
    if isinstance(known, native.Native) and native.is_described(split_part(path)[0]):
        stated = native.load_spec(split_part(path)[0])
        found = FileModel(Source(stated.architecture, True), stated.inputs, stated.tokenizer)
    else:
        found = _read_folder(file, known)
    architecture = found.source.architecture
    if architecture is None and named is None:
        named = default
    if architecture is None and named is None:
        raise undescribed(file, known)
    if named is not None:
        architecture = _with_stated(named.architecture, architecture, str(file))
        found = dataclasses.replace(
            found,
            inputs=found.inputs or dataclasses.replace(named.inputs, size=(0, 0)),
            tokenizer=found.tokenizer or named.tokenizer,
        )
    architecture = _settled(architecture, file, known)
    counted = named is None and known.name in (TRANSFORMERS, TRANSFORMERS_FLAX, native.NAME)
    if not headless and not counted and hasattr(architecture, "num_classes"):
        architecture = _with_classes(architecture, file, known)
    source = dataclasses.replace(found.source, architecture=architecture)
    return dataclasses.replace(found, source=source)


def resolution(architecture: Any) -> dict[str, Any]:
    """Returns the fields of an architecture and of its towers that `RESOLUTION` names, nested.

    Args:
        architecture: dataclass of an architecture.
    """
    own = {field.name for field in dataclasses.fields(architecture)}
    found = {name: getattr(architecture, name) for name in RESOLUTION if name in own}
    for tower in ("image", "text"):
        if hasattr(architecture, tower):
            found[tower] = resolution(getattr(architecture, tower))
    return found


def with_image_size(architecture: Any, size: int | tuple[int, int], title: str) -> Any:
    """Returns an architecture, or one with an image tower, for images of another size.

    Args:
        architecture: config dataclass of the model.
        size: side of the images, or their height and width, px.
        title: name of the model in error messages.

    Raises:
        UserError: a size that the patch size does not divide.
    """
    if image_size(architecture) == (size if isinstance(size, tuple) else (size, size)):
        return architecture
    changes: dict[str, Any] = {"image_size": size}
    if hasattr(architecture, "image"):
        changes = {"image": changes}
    return registry.parse_architecture(changes, title, base=architecture)


def _read_folder(file: TensorFile, known: Format) -> FileModel:
    """What the folder of a file states."""
    folder = file.path.parent
    config = read_description(file, known)
    inputs, tokenizer = None, None
    if known.name == timm.NAME:
        architecture, inputs = timm.describe(config, file)
    else:
        architecture = known.architecture(file, config)
    if known.description == open_clip.DESCRIPTION:
        inputs, tokenizer = open_clip.read_inputs(config), open_clip.read_tokenizer(config, folder)
    elif known.name in (TRANSFORMERS, TRANSFORMERS_FLAX):
        model_type = str((config or {}).get("model_type", ""))
        inputs = huggingface.read_inputs(folder, model_type)
        if architecture is not None and image_size(architecture) == (0, 0):
            inputs = ImageInputs()  # the model reads no images
        if text := getattr(architecture, "text", None):
            tokenizer = folder_tokenizer(folder, model_type, text.vocab_size)
    return FileModel(Source(architecture, architecture is not None), inputs, tokenizer)


def _with_stated(named: Any, stated: Any, title: str) -> Any:
    """The named architecture with the silent fields of the one that the folder states."""
    if type(named) is not type(stated):
        return named
    if any(getattr(named, name, None) != getattr(stated, name, None) for name in SIZES):
        return named
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(named):
        ours, theirs = getattr(named, field.name), getattr(stated, field.name)
        if dataclasses.is_dataclass(ours):
            changes[field.name] = _with_stated(ours, theirs, title)
        elif field.name in SILENT and ours != theirs:
            changes[field.name] = theirs
            logger.warning("%s: its folder states %s=%s, used instead of %s of the named model",
                           title, field.name, theirs, ours)  # fmt: skip
    return dataclasses.replace(named, **changes)


def _settled(architecture: Any, file: TensorFile, known: Format) -> Any:
    settled = known.settle(architecture, file)
    for path, ours, theirs in differing_fields(architecture, settled):
        if path.rpartition(".")[2] in SILENT:
            logger.warning("%s: the file states %s=%s, used instead of %s",
                           file, path, theirs, ours)  # fmt: skip
    return settled


def _with_classes(architecture: Any, file: TensorFile, known: Format) -> Any:
    """The architecture with the number of classes of a file."""
    changes: dict[str, Any] = {"num_classes": architecture.num_classes or 1}
    if hasattr(architecture, "head_norm") and known.name != native.NAME:
        changes["head_norm"] = False  # no other format has one
    with_head = dataclasses.replace(architecture, **changes)
    count = loading.count_classes(file, with_head, known)
    if count != architecture.num_classes:
        logger.info("%s: %d classes, not %d as the named model", file, count,
                    architecture.num_classes)  # fmt: skip
    return dataclasses.replace(with_head, num_classes=count)
