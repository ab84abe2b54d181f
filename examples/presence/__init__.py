"""Presence of one class: is there an eight, or not."""
