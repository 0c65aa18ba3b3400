"""Tasks: one file a question, protocol and metrics together."""
