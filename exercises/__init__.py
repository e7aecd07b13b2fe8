"""Twelve exercises; README.md says how to use them."""
