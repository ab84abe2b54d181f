"""What a client sent becomes ordered samples and options.

Enters: the parts and headers of one request (`raw_request`), in any wire form.
Leaves: the samples in the client's order, each with a name of its own; the options; and a budget
for decoding the samples. Or one error, which says what the client should send instead.
Must not import: `engine`, `members`, `decisions`, `policies` or `answers`.

`parsing` recognises the wire form. `instances` and `open_inference` read JSON, `bundles` takes
archives, arrays and animations apart, and `options` checks options. Samples, bytes and pixels are
counted in the request's `budget` before memory or time is spent on them.
"""
