"""How good networks are: their scores, the differences between two, figures and the report."""
