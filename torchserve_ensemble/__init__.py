"""Several PyTorch models behind one TorchServe endpoint."""

__version__ = "0.1.0"
