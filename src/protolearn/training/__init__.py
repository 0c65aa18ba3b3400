"""Training: the phases of a method, run by Lightning over cases or by a plain loop over cached tokens."""
