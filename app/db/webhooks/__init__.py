"""What webhook senders read and write: endpoints and deliveries."""
