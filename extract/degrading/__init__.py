"""Known flaws in copies of clips: what is planted, how, and what is found again."""
