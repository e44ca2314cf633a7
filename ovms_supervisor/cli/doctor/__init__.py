"""What this host can and cannot do: each check looks or tries, and says figure, reason and remedy."""
