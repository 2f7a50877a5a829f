"""What is computed over images, pairs of images and codes."""
