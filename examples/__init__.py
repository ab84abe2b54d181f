"""Complete ensembles, from training to measured answers."""
