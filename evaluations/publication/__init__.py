"""Publishing trained networks: what is published, its model card, and where it goes."""
