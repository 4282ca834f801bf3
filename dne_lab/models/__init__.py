"""What computes: attention with hook points, task experts, and the expandable transformer."""
