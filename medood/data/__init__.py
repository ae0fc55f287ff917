"""What is in a workspace, and how it is read and written."""
