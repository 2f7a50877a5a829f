"""What training a tokenizer needs beside its parts: config, phases, construction, needs, task, alerts."""
