"""The update rules beside torch's AdamW, what each parameter is to them, and what they hold."""
