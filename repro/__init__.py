"""Does Python's garbage collector stall a vLLM worker, and does freezing its heap help?"""

__version__ = "0.1.0"
