"""The signals that a training heeds."""

from tiling.signals import STOPPING, Stop, listening

__all__ = ["STOPPING", "Stop", "listening"]
