"""Doors to other packages, which are imported only inside; each has a page in docs/."""
