"""Whole servers beside ours: what a burst waits (`burst`), what a request costs and how many pass (`rate`)."""
