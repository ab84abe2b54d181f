"""Small things that every other package may use: errors, tasks, quoting, threads, memory.

Enters: plain values. Leaves: plain values, or an error of the tree in `errors`.
Must not import: any other package of `handlers`.
"""
