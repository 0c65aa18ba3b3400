"""Loss terms as pure functions, one family a file: unweighted scalars, reductions stated."""
