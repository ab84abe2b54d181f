"""Measurements side by side; nothing here is asserted as a time in a test."""
