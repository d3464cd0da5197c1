"""Talking faces that the demo data set is made of: who, saying what, drawn how."""
