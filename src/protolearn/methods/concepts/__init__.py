"""Models whose prototypes are of named concepts."""
