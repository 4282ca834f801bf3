"""What the paper states, and what the records say of it."""
