"""Twelve functions to write yourself. README.md says how."""
