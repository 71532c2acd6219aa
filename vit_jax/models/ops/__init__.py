"""Operations on arrays, the lowest layer of the models.

Attention, MLPs and norms are kernels with a table of implementations: they choose one from the
platform that the model is traced for and from the shapes. `implementation=` overrides the choice.
All implementations compute the same up to rounding; "reference" is the shortest one, for tests.
Operations of detectors (boxes, RoIAlign, non-maximum suppression, sampling, matching) have one
implementation, in plain JAX.
"""
