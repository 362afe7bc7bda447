"""What the tasks on images share: decoding, the geometry of an image processor, masks and maps in a reply."""
