"""A study with human raters: a page that asks, and an analysis of what they say."""
