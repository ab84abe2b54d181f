"""Fuzzes every parser and the whole service, guided by coverage; ``scripts/fuzz`` runs it."""
