"""Audits: what a model's scores and prototypes are worth, as functions of what it put out."""
