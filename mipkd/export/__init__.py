"""From a torch network to a graph that any runtime reads, with proof that it is the same."""
