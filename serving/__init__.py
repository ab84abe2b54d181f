"""What talks to a running TorchServe: life cycle, management and inference clients."""
