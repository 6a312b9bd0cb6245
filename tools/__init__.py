"""Development tools that run in a checkout; the package `mgen` needs none of them."""
