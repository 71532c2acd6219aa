"""Weights in the formats of other libraries.

This package contains the machinery. The knowledge of which tensor is which parameter belongs to
the architectures: the module `weights` in the package of each architecture lists its `FORMATS`.

    containers   files of tensors (safetensors, npz, torch, msgpack); nothing is executed
    format       base class of formats
    entry        correspondence between parameters and tensors; a format is a list of them
    mapping      reading, placing and exporting parameters by such a list
    transforms   memory layouts
    layers       entries of common layers, as other libraries name them
    checks       errors about tensors that are missing, unexpected or misshapen
    recognition  choosing the format of a file
    loading      loading and saving the parameters of a model

To load a weight file of any known format, see `vit_jax.pretrained.weight_files`. To add a format,
see docs/weights.md.
"""
