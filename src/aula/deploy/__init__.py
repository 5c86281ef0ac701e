"""Floor 6: files for others' engines: pipelines that build on every kind of machine."""
