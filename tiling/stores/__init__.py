"""The tile store: zarr v3, written whole, checked and read fast."""
