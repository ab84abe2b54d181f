"""The code that is packed into every archive and runs in TorchServe's worker.

Enters: an archive's folder, and batches of requests from TorchServe.
Leaves: one response for each request.
Must not import: anything outside this package but the packages that an archive's requirements name.
Imports inside it are relative, since an archive holds it without `torchserve_ensemble` around it.
"""
