"""Kernels: functions of arrays with one implementation per platform.

Each function has a table of implementations and chooses one from the platform that the model is
traced for and from the shapes. `implementation=` overrides the choice. All implementations compute
the same up to rounding; "reference" is the shortest one, for tests.
"""
