"""Pictures for people: overlays, contact sheets and the text on them."""
