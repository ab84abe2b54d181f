"""Coverage-guided fuzzing of every parser and of the whole service; ``scripts/fuzz`` runs it."""
