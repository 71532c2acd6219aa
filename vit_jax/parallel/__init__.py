"""Mesh, sharding rules, collectives and the start of processes."""
