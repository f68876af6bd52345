"""What is measured on frames alone, and the verdicts drawn from it."""
