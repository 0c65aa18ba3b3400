"""Prototypes for a classifier that has been trained already and is not changed."""
