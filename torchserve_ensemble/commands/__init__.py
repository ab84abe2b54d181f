"""The verbs of `ts-ensemble`, one file each.

What enters are the arguments of the command line; what leaves is text on standard output, messages
and progress bars on standard error, and an exit status. The work itself is done in `archiver`,
`serving`, `tuning` and `ensemble`, which must not import this package. Modules that take long to
import (torch, rich, the compiler) are imported when a verb runs, so that ``--help`` and the
completions of a shell answer at once.
"""
