"""What jobs point to by https, fetched with care."""
