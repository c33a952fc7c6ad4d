"""Model folders that other programs open, and theirs opened here."""
