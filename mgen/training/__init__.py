"""Training: one loop for generators, tokenizers and classifiers. Start with `mgen train` or `accelerate launch -m mgen.train`."""
