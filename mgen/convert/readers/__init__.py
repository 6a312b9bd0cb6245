"""The readers of official layouts, a file each; every one registers its formats with `register_format`."""
