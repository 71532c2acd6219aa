"""The mesh and what is sharded over it. The only room that names mesh axes."""
