"""The signals that a training heeds."""

from tiling.core.signals import STOPPING, Stop, listening

__all__ = ["STOPPING", "Stop", "listening"]
