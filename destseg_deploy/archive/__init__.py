"""Archives: any number of images, scored in bounded memory, resumable, here or on a Ray cluster."""
