"""What each stage minimises: pure functions of tensors, and thin objectives over them."""
