"""What fourstage is measured against: models and trainers rewritten from their descriptions."""
