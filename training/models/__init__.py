"""The tile classifier, and the folder it lives in."""
