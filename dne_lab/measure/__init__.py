"""What a number is: metrics, cost, records, tables."""
