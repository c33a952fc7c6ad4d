"""The range test: short trials around the rules' values, and what they propose."""
