"""Models tested on tiles: metrics, intervals, robustness, figures."""
