"""The demo in the browser: what its tabs compute, without a browser, and the page."""
