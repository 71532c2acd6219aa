"""Architectures, and registered models by name.

Models do not depend on a mesh, a data set or an optimizer. See README.md for how to add one.
"""
