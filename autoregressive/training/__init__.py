"""What training a GPT needs beside the model: config, construction, task."""
