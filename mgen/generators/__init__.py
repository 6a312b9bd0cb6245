"""Generators: tokens so far + class → a context vector per position, and a head that turns it into tokens."""

from mgen.generators.base import Generator
from mgen.generators.bert import MaskGITBert
from mgen.generators.causal import CausalGenerator
from mgen.generators.enat import ENAT
from mgen.generators.halton import HaltonMaskGIT
from mgen.generators.himar import HiMAR
from mgen.generators.mage import MAGE
from mgen.generators.mar import MAR
from mgen.generators.maskgit import MaskGIT

__all__ = ["ENAT", "MAGE", "MAR", "CausalGenerator", "Generator", "HaltonMaskGIT", "HiMAR", "MaskGIT", "MaskGITBert"]
