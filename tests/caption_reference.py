"""The decoder of captions in NumPy, float64, one example at a time."""

import numpy as np


def layer_norm(x, params, epsilon=1e-6):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt(x.var(-1, keepdims=True) + epsilon) * params["scale"]
    return scaled + params.get("bias", 0)


def attend(x, memory, params, allowed):
    """Attention of tokens (T, D) to others (N, E), where `allowed` (T, N)."""
    q, k, v = (
        np.einsum("td,dhk->thk", of, params[name]["kernel"]) + params[name].get("bias", 0)
        for name, of in (("query", x), ("key", memory), ("value", memory))
    )
    scores = np.einsum("thk,nhk->htn", q, k) / np.sqrt(q.shape[-1])
    powers = np.exp(scores - scores.max(-1, keepdims=True)) * allowed
    mixed = np.einsum("htn,nhk->thk", powers / powers.sum(-1, keepdims=True), v)
    out = np.einsum("thk,hkd->td", mixed, params["out"]["kernel"])
    return out + params["out"].get("bias", 0)


def mlp(x, params):
    hidden = x @ params["fc1"]["kernel"] + params["fc1"].get("bias", 0)
    hidden *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ params["fc2"]["kernel"] + params["fc2"].get("bias", 0)


def layer(params, i):
    return {k: layer(v, i) if isinstance(v, dict) else v[i] for k, v in params.items()}


def decode(params, tokens, memory, parallel):
    """Log-probabilities (T, V) of the tokens (T,) of one caption."""
    length, vocabulary = len(tokens), params["head"]["kernel"].shape[1]
    inputs, allowed = np.r_[0, tokens[:-1]], np.tri(length)
    if parallel:
        inputs, allowed = np.full(length, vocabulary), np.ones((length, length))
    x = params["token_embed"]["embedding"][inputs] + params["positions"][:length]
    blocks = params["blocks"]["blocks"]
    for i in range(len(blocks["norm1"]["scale"])):
        block = layer(blocks, i)
        own = layer_norm(x, block["norm1"])
        x = x + attend(own, own, block["attention"], allowed)
        everywhere = np.ones((length, len(memory)))
        x = x + attend(layer_norm(x, block["norm2"]), memory, block["cross_attention"], everywhere)
        x = x + mlp(layer_norm(x, block["norm3"]), block["mlp"])
    return log_softmax(
        layer_norm(x, params["norm"]) @ params["head"]["kernel"] + params["head"]["bias"]
    )


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def caption_means(params, tokens, memory, parallel):
    """Mean loss and accuracy of the tokens of each caption that are not 0, (B, 2)."""
    rows = []
    for caption, patches, together in zip(tokens, memory, parallel, strict=True):
        found = decode(params, caption, patches, together)
        own = caption != 0
        losses = -found[np.arange(len(caption)), caption]
        correct = found.argmax(-1) == caption
        rows.append([losses[own].mean(), correct[own].mean()])
    return np.asarray(rows)
