"""What two or more steps share."""
