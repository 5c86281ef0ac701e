"""Floor 0: the vocabulary. Imports nothing from aula."""
