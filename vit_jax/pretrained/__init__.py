"""Models with weights: by name, from files of other libraries, and in the library's own format."""
