"""Tables of registered models, one module a group of families."""
