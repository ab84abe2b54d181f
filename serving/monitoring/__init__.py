"""Makes a Grafana dashboard, Prometheus alert rules and a reference from the list of metrics."""
