"""One name -> architecture, preprocessing, tokenizer.

`MODELS` is the table. An entry is plain data, so that it can stand in a config, be changed there
key by key, and travel as JSON with the weights. `ALIASES` are other libraries' names for the same.
"""

from vit_jax.errors import unknown
from vit_jax.models.clip import zoo as clip
from vit_jax.models.mae import zoo as mae
from vit_jax.models.resnet import zoo as resnet
from vit_jax.models.spec import ModelSpec
from vit_jax.models.swin import zoo as swin
from vit_jax.models.vit import zoo as vit

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
