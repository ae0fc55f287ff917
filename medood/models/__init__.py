"""Networks: built from the settings, loaded from anywhere, applied to images."""
