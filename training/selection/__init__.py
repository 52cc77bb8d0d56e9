"""Choosing among trained candidates without labels from elsewhere: what each shows on validation, and rules."""
