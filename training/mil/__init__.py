"""Multiple-instance learning (MIL): a model of bags of tiles' features that learns from slide labels alone."""
