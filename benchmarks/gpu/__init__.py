"""Checks that members run rightly and fast on a GPU, with torch and torchvision alone.

``scripts/check-gpu`` runs it. Each step is a process of its own with a time limit, so that a step
which fails, hangs or breaks the device costs no other step's results. With the CPU as device the
same code runs with tiny sizes, as `tests/test_check_gpu.py` does.
"""
