"""What `fit` needs around the network."""
