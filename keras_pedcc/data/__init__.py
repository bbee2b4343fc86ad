"""Images and labels for training: files, and batches of P classes with K samples."""
