"""The objective `owl` against the loss of Deformable DETR in transformers, which has its terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.reference import relative_error
from vit_jax.objectives.set_prediction import SetConfig, set_losses

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("boxes", [20, 300])
def test_losses_and_gradients(boxes):
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
