"""Floor 1: run a graph; know no model. A backend's runtime is imported when its first session opens."""
