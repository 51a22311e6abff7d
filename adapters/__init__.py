"""One module for each model family that needs words of its own, found through entry points."""
