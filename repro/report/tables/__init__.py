"""The tables and sentences of each notebook, computed from campaigns: one module per notebook."""
