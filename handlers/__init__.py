"""What ships inside every archive and runs in the TorchServe worker."""
