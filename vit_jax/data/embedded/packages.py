"""Files of installed packages, found without importing the packages, which takes seconds."""

import importlib.util
import pathlib

from vit_jax.errors import MissingPackageError


def package_folder(module: str) -> pathlib.Path:
    """Finds the folder of a package.

    Args:
        module: name of the package.

    Raises:
        MissingPackageError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"no package {module}: run `pip install 'vit_jax[samples]'`")
    return pathlib.Path(spec.submodule_search_locations[0])
