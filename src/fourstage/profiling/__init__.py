"""Where the time and the memory of a stage go, measured on made-up batches of a recipe's sizes."""
