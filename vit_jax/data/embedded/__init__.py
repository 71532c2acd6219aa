"""Data that come with ordinary packages: emoji drawings and small labelled sets.

`art` knows the names and the artists, `emoji` builds the image-text set once and caches it,
`labelled` reads the small classification sets. `vit_jax.data.sources.open_source` opens them all.
"""
