"""Methods made to tell what they have not seen, and to find new classes in it."""
