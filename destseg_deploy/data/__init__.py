"""Images, masks, textures and the one resize."""
