"""Set prediction in NumPy and SciPy, float64, one pair of a box and a query after the other."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import expit

RATIOS = ("accuracy", "iou")  # per matched pair; other sums are per box


def focal(logit, target, alpha, gamma=2.0):
    p = expit(logit) if target else expit(-logit)
    return -(alpha if target else 1 - alpha) * (1 - p) ** gamma * np.log(p)


def iou_and_giou(a, b):
    """Of boxes cxcywh."""
    a, b = (np.concatenate([x[:2] - x[2:] / 2, x[:2] + x[2:] / 2]) for x in (a, b))
    inner = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    hull = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner
    return inner / union, inner / union - (hull - union) / hull


def set_sums(outputs, boxes, targets, words, *, alpha=0.25, l1=1.0, giou=1.0):
    """Losses and metrics of all images, with the number of boxes and of matched pairs.

    Args:
        outputs: boxes (B, Q, 4), logits (B, Q, C), and objectness (B, Q) if there is.
        boxes: annotated boxes (B, N, 4).
        targets: words of each box (B, N, C), none for padding.
        words: whether each word exists (B, C).
        alpha: alpha of the focal loss.
        l1: weight of the L1 distance in the cost.
        giou: weight of -GIoU in the cost.
    """
    names = ["class", "l1", "giou", *(["objectness"] if "objectness" in outputs else [])]
    totals = dict.fromkeys((*names, *RATIOS, "matched"), 0.0)
    for image, (found, logits) in enumerate(zip(outputs["boxes"], outputs["logits"], strict=True)):
        exist = np.flatnonzero(words[image])
        valid = targets[image].any(axis=-1)
        wanted, mine = np.float64(boxes[image])[valid], targets[image][valid]
        cost = [
            [
                np.mean([focal(logit[c], True, alpha) - focal(logit[c], False, alpha)
                         for c in np.flatnonzero(row)])
                + l1 * np.abs(box - place).sum() - giou * iou_and_giou(box, place)[1]
                for box, logit in zip(found, logits, strict=True)
            ]
            for row, place in zip(mine, wanted, strict=True)
        ]  # fmt: skip
        rows, queries = linear_sum_assignment(np.reshape(cost, (len(wanted), len(found))))
        target = np.zeros(logits.shape, bool)
        for row, query in zip(rows, queries, strict=True):
            target[query] = mine[row]
            iou, generalized = iou_and_giou(found[query], wanted[row])
            totals["l1"] += np.abs(found[query] - wanted[row]).sum()
            totals["giou"] += 1 - generalized
            totals["iou"] += iou
            totals["accuracy"] += mine[row][exist[np.argmax(logits[query][exist])]]
        totals["matched"] += len(rows)
        totals["class"] += sum(
            focal(logits[q, c], target[q, c], alpha) for q in range(len(found)) for c in exist
        )
        if "objectness" in outputs:
            totals["objectness"] += sum(
                focal(x, target[q].any(), alpha) for q, x in enumerate(outputs["objectness"][image])
            )
    return {**totals, "boxes": np.sum(targets.any(axis=-1)), "images": len(boxes)}


def set_means(sums):
    """Losses per box, and metrics."""
    sums = dict(sums)
    boxes, images, matched = (sums.pop(name) for name in ("boxes", "images", "matched"))
    count = max(boxes, 1)
    means = {k: v / (max(matched, 1) if k in RATIOS else count) for k, v in sums.items()}
    return {**means, "boxes_per_image": boxes / images, "unmatched": 1 - matched / count}
