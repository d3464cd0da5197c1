"""Human opinions of generated talking heads, predicted from a table of features."""
