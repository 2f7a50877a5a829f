"""How numbers are made: published rules, reference images, and what is accumulated over batches."""
