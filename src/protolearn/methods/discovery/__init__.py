"""Generalized category discovery: known classes keep their labels, new ones are found among unlabelled cases."""
