"""An example: three members of different architectures read handwritten digits."""
