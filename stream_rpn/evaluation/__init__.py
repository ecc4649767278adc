"""How good proposals are: recall, what it is measured on, and curves of it."""
