"""The source measure S of (9): the images that a filtered posterior ranges over, with weights."""

from fpmc.source.mapped import mapped
from fpmc.source.measure import Source, as_source
from fpmc.source.pixels import as_uint8, to_float, to_uint8
from fpmc.source.union import union

__all__ = ["Source", "as_source", "as_uint8", "mapped", "to_float", "to_uint8", "union"]
