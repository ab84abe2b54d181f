"""An example: three small members detect whether an image shows an eight."""
