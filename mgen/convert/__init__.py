"""Official checkpoint layouts → mgen's models. One file per published system; nothing else knows official key names."""

from mgen.convert.convert import Conversion, convert
from mgen.convert.formats import FORMATS

__all__ = ["FORMATS", "Conversion", "convert"]
