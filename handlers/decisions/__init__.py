"""The members' scores become the result of each request.

Enters: the options that a client chose, and the members' scores for its samples (`engine`).
Leaves: one result for each request: its decisions, the scores of each member, and an error for
each sample that could not be answered.
Must not import: `answers`, which writes results down, `running`, `service`, `deployment` or
`entry`.

`choosing` checks what the client chose, `grouping` puts samples together that the same members
answered, `combining` applies the policy, `sequences` smooths over frames.
"""
