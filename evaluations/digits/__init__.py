"""A small classifier of digits, which checks whether generated images show the class they were asked for."""
