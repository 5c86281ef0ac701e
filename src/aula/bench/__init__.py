"""Floor 6: engines against the libraries that people use today, each in a process of its own, in one run."""
