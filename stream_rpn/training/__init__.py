"""Training: targets, losses, data and the loop around them."""
