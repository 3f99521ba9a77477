"""The sum over the source by tiles of PyTorch arrays: any operator, any device."""

from fpmc.engine.streaming.backend import Streaming

__all__ = ["Streaming"]
