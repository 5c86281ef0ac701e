"""Floor 1: samples in and out. Knows no model."""
