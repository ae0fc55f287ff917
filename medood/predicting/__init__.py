"""New images of any size, whole slides included.

slides   images and slides, row by row
tiles    overlapping tiles through a network
nuclei   touching nuclei separated, each with its outline
outputs  mask, overlay, table, and outlines for QuPath
"""
