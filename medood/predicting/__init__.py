"""New images of any size: whole slides in tiles, touching nuclei parted, files for QuPath."""
