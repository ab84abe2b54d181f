"""Scores of all members become the result of each request.

Enters: the options that a client chose, and the members' scores for its samples (`engine`).
Leaves: one result for each request: decisions, what each member said, and which samples failed.
Must not import: `answers`, which writes results down, `service`, `deployment` or `entry`.
"""
