"""A page that plays a video while the student makes it."""
