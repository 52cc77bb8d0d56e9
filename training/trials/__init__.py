"""Trials: short trainings on tiles in memory, under many settings and seeds, that studies compare."""
