"""Studies: results that were measured, with the commands that measure them again."""
