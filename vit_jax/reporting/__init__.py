"""Comparison of runs: reading, tables and plots of `vit_jax.report`."""
