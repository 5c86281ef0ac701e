"""Floor 7: parse, call one library function, print."""
