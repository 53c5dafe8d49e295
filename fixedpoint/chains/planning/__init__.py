"""What a solve will take on the machine at hand, and the choice made by it."""
