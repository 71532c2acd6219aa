"""Memory, compute time and communication of a training step on a slice that is not attached.

The step is compiled ahead of time for a TPU slice, or for simulated CPU devices, and the compiled
program is analysed. `python -m vit_jax.plan` prints the result.
"""
