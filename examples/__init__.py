"""Complete ensembles, from the training of their members to the measurement of their answers."""
