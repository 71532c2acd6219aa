"""The losses of detectors against those of transformers.

That of Deformable DETR has the terms of the objective `owl`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import relative_error
from vit_jax.objectives.grounding import Grounding, layer_losses
from vit_jax.objectives.set_prediction import SetConfig, set_losses

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("boxes", [20, 300])
def test_set_prediction(boxes):
    """OWL-ViT B/32's 576 queries; focal alpha 0.25, which the reference has in its matching."""
    import torch
    from transformers.loss import loss_deformable_detr as reference

    rng = np.random.default_rng(0)
    counts = [boxes, 0, boxes // 2, 1]
    logits = rng.normal(size=(4, 576, 80)).astype(np.float32) * 2 - 2
    found = rng.uniform(0.05, 0.6, (4, 576, 4)).astype(np.float32)
    wanted = rng.uniform(0.05, 0.6, (4, boxes, 4)).astype(np.float32)
    valid = np.arange(boxes) < np.array(counts)[:, None]
    labels = np.where(valid, rng.integers(0, 80, valid.shape), -1).astype(np.int32)

    weights = {"class": 1.0, "l1": 5.0, "giou": 2.0}
    matcher = reference.DeformableDetrHungarianMatcher(1.0, 5.0, 2.0)
    criterion = reference.DeformableDetrImageLoss(matcher, 80, 0.25, ["labels", "boxes"])
    tensors = {"logits": torch.tensor(logits), "pred_boxes": torch.tensor(found)}
    for tensor in tensors.values():
        tensor.requires_grad_()
    targets = [
        {"class_labels": torch.tensor(labels[i, :n]).long(), "boxes": torch.tensor(wanted[i, :n])}
        for i, n in enumerate(counts)
    ]
    theirs = criterion(tensors, targets)
    theirs = {k: theirs[f"loss_{name}"] for k, name in zip(weights, ("ce", "bbox", "giou"),
                                                          strict=True)}  # fmt: skip
    sum(weights[k] * theirs[k] for k in weights).backward()

    config = SetConfig(l1_weight=5.0, giou_weight=2.0)
    of_box = jax.nn.one_hot(labels, 80, dtype=bool)

    def total(outputs):
        every = jnp.ones((4, 80), bool)
        losses, _ = set_losses(outputs, jnp.asarray(wanted), of_box, every, config).means()
        return sum(weights[k] * losses[k] for k in weights), losses

    outputs = {"boxes": found, "logits": logits}
    gradients, losses = jax.jit(jax.grad(total, has_aux=True))(outputs)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, theirs[name].item(), rtol=1e-5, err_msg=name)
    for ours, name in (("boxes", "pred_boxes"), ("logits", "logits")):
        error = relative_error(np.asarray(gradients[ours]), tensors[name].grad.numpy())
        print(f"gradient of {ours}: relative error {error:.1e}")
        assert error < 1e-4


def test_grounding():
    """All layers and the selected proposals, with several tokens per phrase.

    The library gives images beyond the second one phrases of others.
    """
    import torch
    from transformers import GroundingDinoConfig
    from transformers.loss.loss_grounding_dino import GroundingDinoForObjectDetectionLoss

    rng = np.random.default_rng(1)
    layers, queries, length, counts, phrases = 4, 900, 256, [40, 100], 30
    logits = rng.normal(size=(layers, 2, queries, length)).astype(np.float32) * 2 - 2
    found = rng.uniform(0.05, 0.6, (layers, 2, queries, 4)).astype(np.float32)
    wanted = rng.uniform(0.05, 0.6, (2, 100, 4)).astype(np.float32)
    exist = np.arange(length) < np.array([256, 100])[:, None]
    first = rng.integers(0, 90, (2, phrases, 1))
    maps = (np.arange(length) >= first) & (
        np.arange(length) <= first + rng.integers(0, 4, (2, phrases, 1))
    )
    labels = rng.integers(0, phrases, (2, 100))
    valid = np.arange(100) < np.array(counts)[:, None]

    config = GroundingDinoConfig(auxiliary_loss=True, decoder_layers=layers - 1)
    tensors = {"logits": torch.tensor(logits), "boxes": torch.tensor(found)}
    for tensor in tensors.values():
        tensor.requires_grad_()
    targets = [
        {"class_labels": torch.tensor(labels[i, :n]), "boxes": torch.tensor(wanted[i, :n])}
        for i, n in enumerate(counts)
    ]
    theirs, _, _ = GroundingDinoForObjectDetectionLoss(
        tensors["logits"][-1], targets, "cpu", tensors["boxes"][-1], config,
        [torch.tensor(each, dtype=torch.float32) for each in maps],
        torch.tensor(exist)[:, None].expand(-1, queries, -1),
        tensors["logits"][1:], tensors["boxes"][1:], tensors["logits"][0], tensors["boxes"][0],
    )  # fmt: skip
    theirs.backward()

    positive_map = np.take_along_axis(maps, labels[..., None], axis=1) & valid[..., None]
    mine = Grounding.Config()

    def total(outputs):
        by_image = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)
        arrays = (jnp.asarray(x) for x in (wanted, positive_map, exist))
        sums = layer_losses(by_image, *arrays, mine)
        losses = jax.tree.map(lambda x: jnp.sum(x) / sum(counts), sums.losses)
        return sum(getattr(mine, f"{name}_weight") * x for name, x in losses.items())

    loss, gradients = jax.jit(jax.value_and_grad(total))({"boxes": found, "logits": logits})
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    for name, tensor in tensors.items():
        error = relative_error(np.asarray(gradients[name]), tensor.grad.numpy())
        print(f"gradient of {name}: relative error {error:.1e}")
        assert error < 1e-4
