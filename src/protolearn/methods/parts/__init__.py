"""Part prototypes: an input is known by parts that look like parts seen before."""
