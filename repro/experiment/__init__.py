"""Launching a real vLLM engine and measuring it."""
