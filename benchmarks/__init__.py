"""Compares the speed of this project with that of other servers that serve the same members.

No test asserts a time. The results that documents quote are in ``benchmarks/results``.
"""
