"""Other ways to serve the same members, each in a module of its own; `starting` starts them."""
