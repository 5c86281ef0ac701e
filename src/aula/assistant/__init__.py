"""Floor 5: the lesson. Sees models only through the runtime."""
