"""Other ways to serve the same members, one module each; `starting` starts them."""
