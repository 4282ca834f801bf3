"""The networks that `probe` can listen to, each behind the same few names (`base.Host`)."""
