"""What people drew on slides: one module a format, and its raster."""
