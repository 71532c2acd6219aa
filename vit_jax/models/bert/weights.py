"""Names of BERT in Hugging Face's transformers (BertModel), for models that contain it."""

from typing import Any

from vit_jax.models.bert.model import BertConfig
from vit_jax.weights.entry import Entry
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import attention_out, linear, norm

# Defaults of the library. Published configs leave them out.
DEFAULTS: layers.Settings = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def bert_entries(config: BertConfig, path: str, prefix: str) -> list[Entry]:
    """Returns the entries of a BERT without a pooler.

    Args:
        config: architecture of the tower.
        path: prefix of the paths in the model.
        prefix: prefix of the names in the file.
    """
    tables = f"{prefix}embeddings"
    return [
        Entry(f"{path}token_embed/embedding", f"{tables}.word_embeddings.weight"),
        Entry(f"{path}positions", f"{tables}.position_embeddings.weight"),
        Entry(f"{path}segments", f"{tables}.token_type_embeddings.weight"),
        *norm(f"{path}norm", f"{tables}.LayerNorm"),
        *block_entries(f"{path}blocks", f"{prefix}encoder.layer.{{i}}", range(config.depth)),
    ]


def block_entries(path: str, key: str, stack: range) -> list[Entry]:
    """Returns the entries of a stack of blocks.

    Args:
        path: path of the stacked blocks in the model.
        key: name of a block in the file, with `{i}` for its number.
        stack: numbers of the blocks.
    """
    attention = f"{key}.attention"
    return [
        *linear(f"{path}/attention/query", f"{attention}.self.query", stack),
        *linear(f"{path}/attention/key", f"{attention}.self.key", stack),
        *linear(f"{path}/attention/value", f"{attention}.self.value", stack),
        *attention_out(f"{path}/attention/out", f"{attention}.output.dense", stack),
        *norm(f"{path}/norm1", f"{attention}.output.LayerNorm", stack),
        *linear(f"{path}/mlp/fc1", f"{key}.intermediate.dense", stack),
        *linear(f"{path}/mlp/fc2", f"{key}.output.dense", stack),
        *norm(f"{path}/norm2", f"{key}.output.LayerNorm", stack),
    ]


def bert_fields(config: layers.Settings) -> dict[str, Any]:
    """Returns the fields of `BertConfig` that a `config.json` determines.

    Args:
        config: content of the file, or of its part for a tower.
    """
    settings = {**DEFAULTS, **config}
    return {
        **layers.stack_fields(settings),
        "vocab_size": settings["vocab_size"],
        "num_positions": settings["max_position_embeddings"],
        "num_segments": settings["type_vocab_size"],
    }
