"""What stands behind `backends.hosted`: an engine's process, the memory it shares, and who brings it back."""
