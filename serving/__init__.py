"""Starts, changes and stops a TorchServe, and sends requests to it.

- Life cycle: `server`, `starting`, `run_folder`, `processes` and `java`; `settings` with
  `properties_file` and `addresses`; `archive_check`; `worker_log` and `extraction`, which find out
  why a worker or an archive failed.
- Changes that lose no request: `changes`, `draining`, `worker_holds`, `management`.
- Clients: `client` (with `transports`, `grpc_transport`), `sessions` and `tokens`, `finding` (which
  server a verb talks to).
- Measurements: `load`, `frontier`.
- `doctor` checks a machine, a configuration and a running server.

Enters: the addresses and tokens of a server, or the settings with which to start one.
Leaves: a server whose workers are READY, changes that lose no request, and predictions.
Must not import: `archiver` or `tuning`. A server does not need the code that built its archives.
"""
