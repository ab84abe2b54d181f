"""The verbs of `ts-ensemble`, one file each.

Each file adds its arguments and runs its verb; the work is done in `archiver`, `serving`, `tuning`
and `ensemble`. Nothing below imports this package. What takes long to import (torch, rich, the
compiler) is imported when a verb runs, so that ``--help`` answers at once.
"""
