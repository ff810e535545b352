"""What one exported file is made of: the model as a graph, its resize in each format, its metadata, 8-bit forms."""
