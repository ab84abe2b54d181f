"""What clients send becomes ordered samples and options.

Enters: the parts and headers of one request, in any of the wire forms.
Leaves: its samples in the client's order, its options, and a budget for decoding them; or one
error that says what the client should send instead.
Must not import: `engine`, `members`, `decisions`, `policies` or `answers`.
"""
