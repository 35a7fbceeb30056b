"""Where everything runs, why, and what it will cost: pure functions of descriptions, no torch."""
