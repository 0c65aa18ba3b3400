"""Non-parametric and generative heads: one vector an input, classes known by cases, distributions or fixed places."""
