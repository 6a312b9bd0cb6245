"""Tokenizer + generator + sampler: images, edits and runs of many images."""
