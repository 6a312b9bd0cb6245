"""Lets diffusers load this folder where mgen is installed but not imported:

DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
"""

from mgen import MaskedPipeline  # noqa: F401
