"""Files, signals, environment variables, text and figures."""
