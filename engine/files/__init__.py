"""What a bundle is on disk: its folder, hashes, signature, and who may write where."""
