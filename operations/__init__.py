"""Brings a running server to a desired state, and keeps it there.

- Desired state: `deployment_file` reads deployment.yaml, and `desired` finds the archives that it
  names.
- Actual state: `state` asks the server, which is the only place where the state is kept.
- The way between the two: `plan` is a pure function of both, `reconciling` carries it out one
  action at a time, `change_lock` lets only one process do so, and `comparison` shows both states.
- `watching` makes a desired state of the archives in a folder or a registry, `autoscaling` decides
  on numbers of workers from `load_figures`.

Enters: a server that `serve` started, and what it is to serve. Leaves: that server, changed without
a lost request. Must not import: `tuning` and the command line.
"""
