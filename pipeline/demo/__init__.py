"""A synthetic cohort and one real slide through the whole."""
