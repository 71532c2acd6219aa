"""Entries of common layers, as other libraries name them."""
