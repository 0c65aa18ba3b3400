"""Other packages, each in an environment of its own, driven through their public interfaces."""
