"""Someone's own vLLM: what its recording shows, as a page and live in a terminal. Never vLLM."""
