"""What a worker tells about itself: metrics, traces and a log of requests.

What happens to a batch comes in as a `BatchTimeline` and as numbers to add up. Increments for
TorchServe's metrics and spans for OpenTelemetry go out. This package knows nothing of requests,
members or policies, and imports nothing of the other packages.
"""
