"""What every other package may use: errors, tasks, quoting for messages, threads, memory.

Must not import: any other package of `handlers`.
"""
