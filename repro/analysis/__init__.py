"""From raw tables to numbers with their uncertainty; imports `repro.dataset`, never vLLM."""
