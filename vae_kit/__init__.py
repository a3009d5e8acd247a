"""Everything around the assignment: data, training, the verdict on it, and what is drawn."""
