"""The model card of an exported model: Markdown with the metadata of the Hugging Face Hub."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

_TASKS = {
    "encode_text": "zero-shot-image-classification",
    "classify": "image-classification",
    "encode_image": "image-feature-extraction",
}
_TRAINING = (
    "model.name",
    "init.weights",
    "data.train",
    "data.augment",
    "objective.name",
    "optim.name",
    "optim.lr",
    "batch_size",
    "seed",
)
_USE = """```python
import jax
import numpy as np
from jax import export

weights = jax.device_put(dict(np.load("{weights}")))
with open("{file}", "rb") as file:
    {name} = jax.jit(export.deserialize(bytearray(file.read())).call)

{argument} = np.zeros({shape}, np.{dtype})  # any batch size
result = {name}(weights, {argument})  # {output}, float32
```"""
_RESIZING = {
    "crop": "scale it until it covers the size divided by {crop_fraction:g}, keeping the aspect "
    "ratio, and take the centre",
    "squash": "scale height and width independently to the size divided by {crop_fraction:g}, and "
    "take the centre",
    "pad": "scale it until it fits, keeping the aspect ratio, and centre it on white",
    "square": "place it in the centre of a square of the mean colour, scale that to the size "
    "divided by {crop_fraction:g}, and take the centre",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts about an exported model.

    Attributes:
        name: title.
        description: content of `export.json`.
        differences: program -> largest relative difference from the model.
        flops: operations of `encode_image` per image.
        licence: SPDX identifier; empty if it is not stated.
    """

    name: str
    description: Mapping[str, Any]
    differences: Mapping[str, float]
    flops: int
    licence: str = ""

    def text(self, run: Mapping[str, Any] | None = None) -> str:
        """Returns the card.

        Args:
            run: `config` of the training run, and `result`, its step and metrics or None; None for
                weights from elsewhere.
        """
        metrics = ((run or {}).get("result") or {}).get("metrics", {})
        parts = [
            self._metadata(metrics),
            f"# {self.name}\n\n{self._summary()}",
            f"## Use\n\n{self._use()}",
            f"## Preprocessing\n\n{self._preprocessing()}",
            f"## Programs\n\n{self._programs()}",
        ]
        if run is not None:
            parts.append(f"## Training\n\n{_training(run)}")
        if metrics:
            rows = [f"| `{name}` | {value:.4g} |" for name, value in metrics.items()]
            parts.append("\n".join(["## Evaluation\n", "| metric | value |", "|---|--:|", *rows]))
        parts.append(
            "## Limits\n\nIntended use, and licence and biases of the training data, are not known "
            "to the export. Describe them here before the model is published."
        )
        return "\n\n".join(parts) + "\n"

    @property
    def _task(self) -> str:
        return next(task for name, task in _TASKS.items() if name in self.description["programs"])

    def _metadata(self, metrics: Mapping[str, float]) -> str:
        """The block of YAML that the Hub reads; its values are JSON, which is YAML too."""
        fields: dict[str, Any] = {
            "library_name": "vit_jax",
            "pipeline_tag": self._task,
            "tags": ["jax", "stablehlo", self.description["architecture"]["architecture"]],
        }
        if self.licence:
            fields["license"] = self.licence.lower()
        results = []
        for metric, value in metrics.items():
            dataset, _, kind = metric.rpartition("/")
            results.append(
                {
                    "task": {"type": self._task},
                    "dataset": {"type": dataset, "name": dataset},
                    "metrics": [{"type": kind, "value": value}],
                }
            )
        if results:
            fields["model-index"] = [{"name": self.name, "results": results}]
        lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
        return "\n".join(["---", *lines, "---"])

    def _summary(self) -> str:
        described = self.description
        height, width = described["preprocessing"]["size"]
        versions = described["versions"]
        return (
            f"{described['parameters'] / 1e6:.4g} M parameters, {self.flops / 1e9:.4g} GFLOPs per "
            f"image of {height} x {width} px, computed in {described['dtype']}. Exported by "
            f"vit_jax {versions['vit_jax']} with JAX {versions['jax']}. JAX, NumPy and "
            "flatbuffers are enough to use it."
        )

    def _use(self) -> str:
        name = "classify" if "classify" in self.description["programs"] else "encode_image"
        program = self.description["programs"][name]
        shape = ", ".join(map(str, program["input"]["shape"][1:]))
        output = ", ".join(map(str, program["output"]["shape"]))
        return _USE.format(
            weights=self.description["weights"],
            file=program["file"],
            name=name,
            argument="images",
            shape=f"(2, {shape})",
            dtype=program["input"]["dtype"],
            output=f"({output})",
        )

    def _preprocessing(self) -> str:
        settings = self.description["preprocessing"]
        how = _RESIZING.get(settings["resize"], "`resize` of `export.json`").format(**settings)
        height, width = settings["size"]
        return (
            f"An image becomes {height} x {width} px of uint8: composite alpha on white, {how} "
            f"({settings['interpolation']}, with antialiasing, as Pillow). The program normalises "
            f"the pixels. `export.json` has the same in numbers."
        )

    def _programs(self) -> str:
        rows = []
        for name, program in self.description["programs"].items():
            given, result = (_array(program[side]) for side in ("input", "output"))
            rows.append(
                f"| `{program['file']}` | {given} | {result} | {self.differences[name]:.1e} |"
            )
        platforms = ", ".join(self.description["platforms"])
        lines = [
            f"For {platforms}. The error is the largest difference between the reloaded program "
            "and the model on random examples, relative to the largest value.",
            "",
            "| file | input | output | error |",
            "|---|---|---|--:|",
        ]
        return "\n".join([*lines, *rows])


def _array(described: Mapping[str, Any]) -> str:
    return f"{described['dtype']} ({', '.join(map(str, described['shape']))})"


def _training(run: Mapping[str, Any]) -> str:
    rows = ["| key | value |", "|---|---|"]
    for path in _TRAINING:
        value: Any = run["config"]
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value not in (None, "", ()):
            rows.append(f"| `config.{path}` | `{value}` |")
    if run["result"]:
        rows.append(f"| steps | {run['result']['step']:,} |")
    return "\n".join(rows)
