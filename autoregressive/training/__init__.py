"""What training a generator needs beside the model: config, construction, task."""
