"""What is seen: probes of attention."""
