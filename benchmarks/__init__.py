"""What the instruments themselves cost."""
