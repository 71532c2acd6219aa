"""A research project that extends vit_jax without changing it."""
