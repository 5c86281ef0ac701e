"""Floor 2: make engines. Knows no model by name; a model hands it a recipe."""
