"""Architectures. A model knows no mesh, no data set and no optimizer."""
