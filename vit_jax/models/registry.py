"""One name -> architecture, preprocessing, tokenizer.

`MODELS` is the table. An entry is plain data, so that it can stand in a config, be changed there
key by key, and travel as JSON with the weights. `ALIASES` are other libraries' names for the same.
"""

from vit_jax.errors import unknown
from vit_jax.models.catalog import clip, mae, resnet, swin, vit
from vit_jax.models.spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    **clip.MODELS,
    **mae.MODELS,
    **resnet.MODELS,
    **swin.MODELS,
    **vit.MODELS,
}
ALIASES: dict[str, str] = {**clip.ALIASES, **swin.ALIASES, **vit.ALIASES}


def list_models() -> list[str]:
    """Registered names, sorted."""
    return sorted(MODELS)


def model_spec(name: str) -> ModelSpec:
    """The registered model of that name; an unknown name is told the nearest one."""
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise unknown(name, [*MODELS, *ALIASES], "model")
    return MODELS[name]
