"""Shallow methods: prototypes in the space of the input itself, for tables and for features made elsewhere."""
