"""Parts that every other package may use: errors, tasks, threads, memory, imports, messages.

Enters: plain values, such as texts, numbers and paths.
Leaves: plain values, functions and modules, or an error of the tree that `errors` draws.
Must not import: any other package of `handlers`.
"""
