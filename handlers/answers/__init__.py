"""Results become response bodies.

Enters: the result of one request (`decisions`) and the format that its client asked for.
Leaves: a body with its status and headers.
Must not import: `service`, `deployment`, `entry`, `engine`, `members`. An answer is written from a
result alone; it computes no scores.
"""
