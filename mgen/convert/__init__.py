"""Official checkpoint layouts → mgen's models. One file per published system; nothing else knows official key names."""

from mgen.convert.convert import FORMATS, Conversion, convert

__all__ = ["FORMATS", "Conversion", "convert"]
