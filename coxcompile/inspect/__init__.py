"""What a user can look at: dumps of the graph after each pass, and ``explain``."""
