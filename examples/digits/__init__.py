"""Three members of different architecture on handwritten digits."""
