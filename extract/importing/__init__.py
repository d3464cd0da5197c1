"""Data that other programs left: read without trust, brought into our form."""
