"""Prototypes of whole inputs: an input is one code, and a prototype stands for inputs like it."""
