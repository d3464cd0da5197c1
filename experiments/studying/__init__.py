"""What the studies have in common: their command, their runs and what they write."""
